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
/** Below these a stronger codec is worth its time. */
const zstdMaxWireRate = 90 * MIB;
const deflateMaxWireRate = 12 * MIB;
/** A trial that does worse than this share of the best is cut short. */
const trialShare = 0.8;
const trialBytesMin = 24 * MIB;
/** Storing costs the least work at both ends, so it wins unless another codec is faster by this factor. */
const storedBonus = 1.15;
/** Rounds between two trials of the runner-up. */
const roundsBetweenTrials = 16;
/** Units in a row that did not shrink before compressing is paused, and how many are then stored before the next try. */
const stubbornUnits = 8;
const pausedUnits = 15;

interface Round {
  readonly codec: CodecName;
  startedAt: number;
  rawBytes: number;
  packedBytes: number;
}

export class CodecChoice {
  readonly #candidates: readonly CodecName[];
  readonly #rates = new Map<CodecName, number>();
  #round: Round;
  #settledRounds = 0;
  #stubborn = 0;
  #paused = 0;

  /** `usable`: codecs both ends have. `fixed`: the user's word, which is never second-guessed. */
  constructor(options: {
    readonly usable: readonly CodecName[];
    readonly fixed: CodecName | undefined;
    readonly now: number;
  }) {
    this.#candidates = options.fixed === undefined ? options.usable : [options.fixed];
    const first = options.fixed ?? (options.usable.includes("lz4") ? "lz4" : "stored");
    this.#round = { codec: first, startedAt: options.now, rawBytes: 0, packedBytes: 0 };
  }

  /** The codec for the next unit. */
  next(): CodecName {
    if (this.#paused > 0) {
      this.#paused--;
      return "stored";
    }
    return this.#round.codec;
  }

  /** A unit was taken by the socket. `tried`: the codec {@link next} named. Milliseconds, monotonic. */
  observe(unit: {
    readonly tried: CodecName;
    readonly rawBytes: number;
    readonly packedBytes: number;
    readonly now: number;
  }): void {
    if (unit.tried !== "stored") {
      const shrank = unit.packedBytes < unit.rawBytes * 0.97;
      this.#stubborn = shrank ? 0 : this.#stubborn + 1;
      if (this.#stubborn >= stubbornUnits) this.#paused = pausedUnits;
    }
    if (this.#candidates.length < 2) return;
    const round = this.#round;
    round.rawBytes += unit.rawBytes;
    round.packedBytes += unit.packedBytes;
    const seconds = (unit.now - round.startedAt) / 1000;
    if (seconds <= 0) return;
    const rate = round.rawBytes / seconds;
    const best = Math.max(0, ...this.#rates.values());
    const hopeless = round.rawBytes >= trialBytesMin && best > 0 && rate < best * trialShare;
    if (round.rawBytes < roundBytes && !hopeless) return;
    this.#rates.set(round.codec, round.codec === "stored" ? rate * storedBonus : rate);
    this.#start(this.#choose(round, rate), unit.now);
  }

  #start(codec: CodecName, now: number): void {
    this.#round = { codec, startedAt: now, rawBytes: 0, packedBytes: 0 };
  }

  #choose(round: Round, rate: number): CodecName {
    const wireRate = rate * (round.packedBytes / Math.max(1, round.rawBytes));
    const untried = this.#candidates.find((codec) => !this.#rates.has(codec) && this.#promising(codec, rate, wireRate));
    if (untried !== undefined) return untried;
    let best: CodecName = round.codec;
    let runnerUp: CodecName | undefined;
    for (const [codec, value] of this.#rates) {
      if (value > (this.#rates.get(best) ?? 0)) best = codec;
    }
    for (const [codec, value] of this.#rates) {
      if (codec !== best && value > (runnerUp === undefined ? 0 : (this.#rates.get(runnerUp) ?? 0))) runnerUp = codec;
    }
    this.#settledRounds++;
    if (this.#settledRounds % roundsBetweenTrials === 0 && runnerUp !== undefined) return runnerUp;
    return best;
  }

  #promising(codec: CodecName, rate: number, wireRate: number): boolean {
    switch (codec) {
      case "stored":
        return rate >= storedMinRate;
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
