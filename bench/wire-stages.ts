/** Frames: a data frame of 16 whole blocks, as a full extent has, and the smallest control frame. */
import { KIB, MIB } from "../src/base/units.ts";
import { createFrameDecoder, encodeFrame, encodeHeadBefore } from "../src/wire/frame.ts";
import type { Data, Heartbeat } from "../src/wire/messages.ts";
import type { Stage } from "./measuring.ts";

/** What a socket hands over at once. */
const chunkBytes = 64 * KIB;
const headRoom = 8 * KIB;

export function wireStages(): readonly Stage[] {
  const blocks = Array.from({ length: 16 }, (_, index) => 1_000_000 + index);
  const data: Data = {
    type: "data",
    blocks,
    masks: new Uint8Array(2 * blocks.length).fill(0xff),
    digests: new Uint8Array(8 * blocks.length).fill(0x5a),
    codec: "stored",
    rawBytes: MIB,
    repeat: false,
  };
  const heartbeat: Heartbeat = { type: "heartbeat", bytes: 123_456_789_012, phase: "scan" };
  const slot = new Uint8Array(headRoom + MIB).fill(1);
  const payload = new Uint8Array(MIB);
  const decoder = createFrameDecoder({
    payloadTarget: (_message, bytes) => payload.subarray(0, bytes),
    onFrame: () => {},
  });
  const frame = slot.subarray(encodeHeadBefore(data, MIB, slot, headRoom));
  const chunks: Uint8Array[] = [];
  for (let offset = 0; offset < frame.length; offset += chunkBytes)
    chunks.push(frame.subarray(offset, offset + chunkBytes));
  const control = encodeFrame(heartbeat);

  return [
    {
      name: "data frame with 1 MiB of payload",
      bytes: MIB,
      cases: [
        { name: "encode before the payload", run: () => encodeHeadBefore(data, MIB, slot, headRoom) },
        {
          name: "decode in chunks of 64 KiB",
          run() {
            for (const chunk of chunks) decoder.push(chunk);
          },
        },
      ],
    },
    {
      name: "control frame",
      bytes: 64,
      cases: [
        { name: "encode", run: () => encodeFrame(heartbeat) },
        { name: "decode", run: () => decoder.push(control) },
      ],
    },
  ];
}
