/** Which codec the next unit gets, on links and content of several kinds. Time is what the test says. */
import { describe, expect, test } from "vitest";
import { MIB } from "../../src/base/units.ts";
import type { CodecName } from "../../src/codec/compression.ts";
import { CodecChoice } from "../../src/replication/codec-choice.ts";

/** How fast each codec works here, and to what it shrinks the content. */
interface Codecs {
  readonly speed: Readonly<Record<CodecName, number>>;
  readonly ratio: Readonly<Record<CodecName, number>>;
}

const text: Codecs = {
  speed: { stored: 2_000 * MIB, lz4: 600 * MIB, deflate: 60 * MIB, zstd: 300 * MIB },
  ratio: { stored: 1, lz4: 0.5, deflate: 0.3, zstd: 0.25 },
};
const noise: Codecs = { ...text, ratio: { stored: 1, lz4: 1, deflate: 1, zstd: 1 } };
const all = ["stored", "lz4", "deflate", "zstd"] as const;

class Run {
  readonly choice: CodecChoice;
  link: number;
  now = 0;
  /** Bytes before compression, by what they were sent with. */
  readonly sent: Record<CodecName, number> = { stored: 0, lz4: 0, deflate: 0, zstd: 0 };

  constructor(link: number, options: { usable?: readonly CodecName[]; fixed?: CodecName } = {}) {
    this.link = link;
    this.choice = new CodecChoice({ usable: options.usable ?? all, fixed: options.fixed });
  }

  /** Units of 1 MiB, one after the other, each as fast as the slower of codec and link lets it. */
  send(bytes: number, codecs: Codecs): this {
    for (let done = 0; done < bytes; done += MIB) {
      const pick = this.choice.next();
      const shrunk = codecs.ratio[pick.codec] < 1;
      const packedBytes = MIB * codecs.ratio[pick.codec];
      // What does not shrink is sent as it is.
      this.sent[shrunk ? pick.codec : "stored"] += MIB;
      const seconds = Math.max(MIB / codecs.speed[pick.codec], packedBytes / this.link);
      this.now += seconds * 1000;
      const givenAt = this.now - (packedBytes / this.link) * 1000;
      this.choice.observe({ pick, rawBytes: MIB, packedBytes, givenAt, now: this.now });
    }
    return this;
  }

  share(codec: CodecName): number {
    return this.sent[codec] / Object.values(this.sent).reduce((sum, bytes) => sum + bytes, 0);
  }
}

describe("auto", () => {
  test("a small delta is compressed, and nothing else is tried", () => {
    for (const link of [1 * MIB, 100 * MIB, 2_000 * MIB]) {
      expect(new Run(link).send(40 * MIB, text).share("lz4")).toBe(1);
    }
  });

  test("a trial that loses is made ever more rarely", () => {
    const run = new Run(1_000 * MIB).send(1_024 * MIB, text);
    const before = run.sent.lz4;
    run.send(65_536 * MIB, text);
    expect(run.sent.lz4).toBeGreaterThan(before);
    expect((run.sent.lz4 - before) / (65_536 * MIB)).toBeLessThan(0.008);
  });

  test("a link faster than the compressor: stored, most of the time", () => {
    expect(new Run(2_000 * MIB).send(8_192 * MIB, text).share("stored")).toBeGreaterThan(0.85);
  });

  test("a link of 1 Gbit/s: compressed, but for one trial", () => {
    const run = new Run(117 * MIB, { usable: ["stored", "lz4"] }).send(4_096 * MIB, text);
    expect(run.share("lz4")).toBeGreaterThan(0.98);
    // Where less than that shrinks, storing cannot win, and is not tried.
    const hard: Codecs = { ...text, ratio: { ...text.ratio, lz4: 0.8 } };
    expect(new Run(117 * MIB, { usable: ["stored", "lz4"] }).send(4_096 * MIB, hard).share("lz4")).toBe(1);
  });

  test("a slow link: the strongest codec there is", () => {
    expect(new Run(5 * MIB).send(4_096 * MIB, text).share("zstd")).toBeGreaterThan(0.8);
    expect(
      new Run(5 * MIB, { usable: ["stored", "lz4", "deflate"] }).send(4_096 * MIB, text).share("deflate"),
    ).toBeGreaterThan(0.8);
  });

  test("a codec that is slower than the link is left again", () => {
    const slow: Codecs = { ...text, speed: { ...text.speed, deflate: 4 * MIB, zstd: 6 * MIB } };
    expect(new Run(11 * MIB).send(8_192 * MIB, slow).share("lz4")).toBeGreaterThan(0.8);
  });

  test("content that does not shrink is not compressed for long, and found again when it does", () => {
    const run = new Run(117 * MIB, { usable: ["stored", "lz4"] }).send(512 * MIB, noise);
    let tried = 0;
    for (let unit = 0; unit < 64; unit++) {
      const pick = run.choice.next();
      if (pick.codec !== "stored") tried++;
      run.choice.observe({ pick, rawBytes: MIB, packedBytes: MIB, givenAt: run.now, now: (run.now += 9) });
    }
    expect(tried).toBeGreaterThan(0);
    expect(tried).toBeLessThanOrEqual(64 / 12);
    const before = run.sent.lz4;
    run.send(256 * MIB, text);
    expect(run.sent.lz4 - before).toBeGreaterThan(200 * MIB);
  });

  test("where the work at both ends is the limit and not the link, storing is tried, and kept when it is faster", () => {
    // A scan that finds changes here and there: 130 MiB/s of them, and what compressing takes is missing there.
    const scattered: Codecs = { ...text, speed: { ...text.speed, stored: 150 * MIB, lz4: 130 * MIB } };
    const usable = ["stored", "lz4"] as const;
    expect(new Run(2_000 * MIB, { usable }).send(1_024 * MIB, scattered).share("stored")).toBeGreaterThan(0.8);
    // While the link has time to spare nothing that shrinks more can be faster: no trial but the first.
    const run = new Run(2_000 * MIB, { usable }).send(256 * MIB, scattered);
    const compressed = run.sent.lz4;
    expect(run.send(16_384 * MIB, scattered).sent.lz4).toBe(compressed);
    // The link becomes slow: then it is tried again, and kept.
    run.link = 70 * MIB;
    const stored = run.sent.stored;
    run.send(4_096 * MIB, scattered);
    expect(run.sent.stored - stored).toBeLessThan(0.3 * 4_096 * MIB);
    // The same on a link that lz4 fills: storing takes twice the time, and is not tried.
    expect(new Run(70 * MIB, { usable }).send(1_024 * MIB, scattered).share("lz4")).toBe(1);
  });

  test("without compression at the other end all is stored", () => {
    expect(new Run(MIB, { usable: ["stored"] }).send(512 * MIB, text).share("stored")).toBe(1);
  });

  test("units observed late, from a round that is over, change nothing; nor does a clock that stands still", () => {
    const choice = new CodecChoice({ usable: all, fixed: undefined });
    const old = choice.next();
    for (let unit = 0; unit < 500; unit++)
      choice.observe({ pick: old, rawBytes: MIB, packedBytes: MIB / 2, givenAt: 7, now: 7 });
    expect(choice.next().codec).toBe("lz4");
    for (let unit = 1; unit < 500; unit++) {
      choice.observe({ pick: { codec: "lz4", round: 99 }, rawBytes: MIB, packedBytes: 1, givenAt: 7, now: 7 + unit });
    }
    expect(choice.next()).toEqual(old);
  });
});

describe("the user's word", () => {
  test.each(all)("%s stays, whatever the link and the content", (fixed) => {
    for (const link of [2 * MIB, 2_000 * MIB]) {
      const run = new Run(link, { fixed });
      for (const content of [text, noise, text]) {
        run.send(512 * MIB, content);
        for (let unit = 0; unit < 20; unit++) expect(run.choice.next().codec).toBe(fixed);
      }
    }
  });
});
