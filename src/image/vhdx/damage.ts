/** What is wrong with a VHDX file, as errors. */
import { ReplicationError } from "../../base/errors.ts";

/** `what` is a sentence without its subject: "the BAT lies over the log". */
export function vhdxDamaged(file: string, what: string, details: { readonly offset?: number } = {}): ReplicationError {
  return new ReplicationError(
    "image-damaged",
    `${file} is a damaged VHDX file: ${what}. Check it with the tool that made it, or restore it`,
    { details: { file, ...details } },
  );
}

export function vhdxUnsupported(file: string, what: string): ReplicationError {
  return new ReplicationError("image-format-unsupported", `${file}: ${what}, which this version does not read`, {
    details: { file, format: "vhdx" },
  });
}
