/** The one error of all codecs. */
import { ReplicationError } from "../base/errors.ts";

/** `reason` is what the library said, where it said something a person can use. */
export function codecDamaged(
  codec: string,
  source: Uint8Array,
  target: Uint8Array,
  options: { readonly reason?: string; readonly cause?: unknown } = {},
): ReplicationError {
  const reason = options.reason === undefined ? "" : `: ${options.reason}`;
  return new ReplicationError(
    "codec-damaged",
    `damaged ${codec} data: ${source.length} bytes do not decode to exactly ${target.length}${reason}`,
    {
      cause: options.cause,
      details: { codec, compressedBytes: source.length, expectedBytes: target.length },
    },
  );
}
