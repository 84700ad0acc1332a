/** Ships what a scan found: takes credit and rate, writes the frame's head before its payload, and counts. */
import { neighboursEnd } from "../base/neighbours.ts";
import { countParts } from "../base/part-mask.ts";
import type { Slot } from "../base/buffer-pool.ts";
import type { Clock } from "../base/clock.ts";
import { type Geometry, PART_BYTES } from "../base/units.ts";
import type { BlockReader } from "../image/block-device.ts";
import type { Shipment } from "../lanes/jobs.ts";
import type { Lanes } from "../lanes/lanes.ts";
import { areaA } from "../lanes/slot-layout.ts";
import { encodeFrame, encodeHeadBefore } from "../wire/frame.ts";
import type { Data, Zero } from "../wire/messages.ts";
import type { CodecChoice, CodecPick } from "./codec-choice.ts";
import type { FunnelCount } from "./funnel-count.ts";
import { readParts, stretchesOf } from "./part-ranges.ts";
import type { RateLimit } from "./rate.ts";
import type { Funnel } from "./report.ts";
import type { SenderSession } from "./sender-session.ts";

/** Blocks of one `zero` frame: 64 MiB at the default, so that long zero stretches count as progress. */
const blocksPerZero = 1_024;

export interface FrameShipperOptions {
  readonly reader: BlockReader;
  /** Name of the image, for messages. */
  readonly name: string;
  readonly geometry: Geometry;
  readonly session: SenderSession;
  readonly lanes: Lanes;
  readonly codec: CodecChoice;
  readonly rate: RateLimit;
  readonly clock: Clock;
  readonly funnel: Funnel;
  readonly count: FunnelCount;
  readonly signal: AbortSignal;
}

export class FrameShipper {
  readonly #o: FrameShipperOptions;

  constructor(options: FrameShipperOptions) {
    this.#o = options;
  }

  /** `read` false: the parts lie in area A of the slot already. */
  async packAndShip(
    slot: Slot,
    blocks: readonly number[],
    masks: Uint8Array,
    digests: Uint8Array,
    how: { readonly read: boolean; readonly repeat: boolean },
  ): Promise<void> {
    const { lanes, codec, funnel, reader, geometry, name } = this.#o;
    const { blockBytes } = geometry;
    const rawBytes = countParts(masks) * PART_BYTES;
    let held: ReturnType<typeof stretchesOf>;
    if (how.read) {
      funnel.readBytes += rawBytes;
      held = stretchesOf(reader, blocks, geometry);
      const target = slot.bytes.subarray(areaA, areaA + rawBytes);
      if (held === undefined) await readParts(reader, blocks, masks, geometry, target);
    }
    const { stretches } = held ?? {};
    const pick = codec.next();
    const request = { slot: slot.index, file: name, blockBytes, stretches, masks, rawBytes, codec: pick.codec };
    const packed = await lanes.run("pack", request).finally(() => held?.release());
    const frame = { blocks, masks, digests, rawBytes, ...packed };
    await this.ship(slot, frame, { repeat: how.repeat, pick });
  }

  async ship(
    slot: Slot,
    shipment: Omit<Shipment, "picked"> & { readonly blocks: readonly number[] },
    how: { readonly repeat: boolean; readonly pick: CodecPick },
  ): Promise<void> {
    const { session, rate, funnel, codec, clock, signal } = this.#o;
    const { blocks, masks, digests, rawBytes, payloadOffset, payloadBytes } = shipment;
    const { repeat } = how;
    const message: Data = { type: "data", blocks, masks, digests, codec: shipment.codec, rawBytes, repeat };
    await session.takeCredit();
    const start = encodeHeadBefore(message, payloadBytes, slot.bytes, payloadOffset);
    const frame = slot.bytes.subarray(start, payloadOffset + payloadBytes);
    await rate.take(() => frame.length, signal);
    const givenAt = clock.monotonic();
    await session.sendData(message, frame);
    codec.observe({ pick: how.pick, rawBytes, packedBytes: payloadBytes, givenAt, now: clock.monotonic() });
    funnel.packedBytes += frame.length;
    if (repeat) {
      funnel.repeatedBlocks += blocks.length;
      return;
    }
    this.#o.count.parts(blocks, masks);
  }

  /** Blocks ascending; neighbours travel together. */
  async shipZeros(blocks: readonly number[], repeat: boolean): Promise<void> {
    const { session, rate, signal } = this.#o;
    for (let index = 0; index < blocks.length; ) {
      const first = blocks[index] ?? 0;
      const count = neighboursEnd(blocks, index, blocksPerZero) - index;
      index += count;
      const message: Zero = { type: "zero", first, count, repeat };
      await session.takeCredit();
      await rate.take(() => encodeFrame(message).length, signal);
      session.sendZero(message);
      if (!repeat) this.#o.count.zeros(first, count);
    }
  }
}
