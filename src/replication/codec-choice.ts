/**
 * `--codec auto`: which codec the next unit gets. Pure: it is told what happened and when.
 *
 * On a link faster than the compressor, compressing costs more than it saves; on a slow one it is the whole speed. Nobody knows the
 * link, so it is measured: units are sent in rounds, each with one codec, and the goodput (bytes before compression, a second) of a
 * round decides. Compression is the start, because a small delta never leaves the first round and then wire bytes count.
 */
import { MIB } from "../base/units.ts";
import type { CodecName } from "../codec/compression.ts";

/** A round measures at least this much: several times what socket buffers and credit hide. */
const roundBytes = 48 * MIB;
/** A link that takes less than this before compression is slower than any lane's lz4: storing cannot win. */
const storedMinRate = 200 * MIB;
/** A link that is busy for less than this share of the time is not what limits: reading, comparing or the receiver is, and compressing takes from them. */
const idleLinkShare = 0.5;
/** Below these a stronger codec is worth its time. */
const zstdMaxWireRate = 90 * MIB;
const deflateMaxWireRate = 12 * MIB;
/** A trial that does worse than this share of the best is cut short. */
const trialShare = 0.8;
const trialBytesMin = 24 * MIB;
/** Storing costs the least work at both ends, so it wins unless another codec is faster by this factor. */
const storedBonus = 1.15;
/** From this share of the stored rate on a compressed stream counts as filling the link. */
const linkShare = 0.75;
/** Rounds before the first trial of the runner-up; after each that it loses twice as many, up to the second number. */
const roundsBetweenTrials = 16;
const roundsBetweenTrialsMax = 256;
/** Units in a row that did not shrink before compressing is paused, and how many are then stored before the next try. */
const stubbornUnits = 8;
const pausedUnits = 15;

/** What a unit is compressed with, and in which round that was decided. */
export interface CodecPick {
  readonly codec: CodecName;
  readonly round: number;
}

interface Round {
  readonly number: number;
  readonly codec: CodecName;
  /** When its first unit was taken; undefined: none yet. What was under way from the round before is not counted. */
  startedAt: number | undefined;
  rawBytes: number;
  packedBytes: number;
  /** Milliseconds in which the socket had something to take. */
  busyMillis: number;
}

export class CodecChoice {
  readonly #candidates: readonly CodecName[];
  readonly #rates = new Map<CodecName, number>();
  #round: Round;
  /** What won the last time, and how long it is left alone. */
  #best: CodecName | undefined;
  #roundsToTrial = roundsBetweenTrials;
  #roundsBetween = roundsBetweenTrials;
  /** Bytes a second on the wire in the last round that stored. */
  #linkRate = Number.POSITIVE_INFINITY;
  /** When the socket took the last unit. */
  #takenAt = 0;
  #stubborn = 0;
  #paused = 0;

  /** `usable`: codecs both ends have. `fixed`: the user's word, which is never second-guessed. */
  constructor(options: { readonly usable: readonly CodecName[]; readonly fixed: CodecName | undefined }) {
    this.#candidates = options.fixed === undefined ? options.usable : [options.fixed];
    const first = options.fixed ?? (options.usable.includes("lz4") ? "lz4" : "stored");
    this.#round = { number: 0, codec: first, startedAt: undefined, rawBytes: 0, packedBytes: 0, busyMillis: 0 };
  }

  /** For the next unit. */
  next(): CodecPick {
    const { number, codec } = this.#round;
    if (this.#paused > 0) {
      this.#paused--;
      return { codec: "stored", round: number };
    }
    return { codec, round: number };
  }

  /** A unit was taken by the socket. Times in milliseconds, monotonic. */
  observe(unit: {
    readonly pick: CodecPick;
    readonly rawBytes: number;
    readonly packedBytes: number;
    /** When the socket was given it. */
    readonly givenAt: number;
    readonly now: number;
  }): void {
    const busyMillis = unit.now - Math.max(unit.givenAt, this.#takenAt);
    this.#takenAt = unit.now;
    if (this.#candidates.length < 2) return;
    if (unit.pick.codec !== "stored") {
      const shrank = unit.packedBytes < unit.rawBytes * 0.97;
      this.#stubborn = shrank ? 0 : this.#stubborn + 1;
      if (this.#stubborn >= stubbornUnits) this.#paused = pausedUnits;
    }
    const round = this.#round;
    if (unit.pick.round !== round.number) return;
    if (round.startedAt === undefined) {
      round.startedAt = unit.now;
      return;
    }
    round.rawBytes += unit.rawBytes;
    round.packedBytes += unit.packedBytes;
    round.busyMillis += busyMillis;
    const seconds = (unit.now - round.startedAt) / 1000;
    if (seconds <= 0) return;
    const rate = round.rawBytes / seconds;
    const best = Math.max(0, ...this.#rates.values());
    const hopeless = round.rawBytes >= trialBytesMin && best > 0 && rate < best * trialShare;
    if (round.rawBytes < roundBytes && !hopeless) return;
    this.#rates.set(round.codec, round.codec === "stored" ? rate * storedBonus : rate);
    const codec = this.#choose(round, rate, round.busyMillis / 1000 / seconds);
    // The same codec goes on being measured without a gap.
    const startedAt = codec === round.codec ? unit.now : undefined;
    const number = codec === round.codec ? round.number : round.number + 1;
    this.#round = { number, codec, startedAt, rawBytes: 0, packedBytes: 0, busyMillis: 0 };
  }

  #choose(round: Round, rate: number, busyShare: number): CodecName {
    const wireRate = rate * (round.packedBytes / Math.max(1, round.rawBytes));
    if (round.codec === "stored") this.#linkRate = wireRate;
    const untried = this.#candidates.find(
      (codec) => !this.#rates.has(codec) && this.#promising(codec, { rate, wireRate, busyShare }),
    );
    if (untried !== undefined) return untried;
    // Compressed units fill the link as stored ones did: the link is the limit, and a stretch that shrinks less says nothing against it.
    const linkIsLimit = round.codec !== "stored" && wireRate >= this.#linkRate * linkShare;
    const ranked = [...this.#rates]
      .filter(([codec]) => !(linkIsLimit && codec === "stored"))
      .sort(([, a], [, b]) => b - a)
      .map(([codec]) => codec);
    const [best = round.codec, runnerUp] = ranked;
    // The link has time to spare: whatever shrinks more cannot be faster.
    if (best === "stored" && round.codec === "stored" && busyShare < idleLinkShare) return best;
    if (best !== this.#best) {
      this.#best = best;
      this.#roundsBetween = roundsBetweenTrials;
      this.#roundsToTrial = roundsBetweenTrials;
    }
    if (--this.#roundsToTrial > 0) return best;
    this.#roundsBetween = Math.min(this.#roundsBetween * 2, roundsBetweenTrialsMax);
    this.#roundsToTrial = this.#roundsBetween;
    return runnerUp ?? best;
  }

  #promising(
    codec: CodecName,
    { rate, wireRate, busyShare }: { rate: number; wireRate: number; busyShare: number },
  ): boolean {
    switch (codec) {
      case "stored":
        return rate >= storedMinRate || busyShare < idleLinkShare;
      case "zstd":
        return wireRate <= zstdMaxWireRate;
      case "deflate":
        return wireRate <= deflateMaxWireRate;
      case "lz4":
        return true;
      default:
        return codec satisfies never;
    }
  }
}
