/** Whether a request can be done at all. Pure. */
import { nbdLimits } from "./nbd-limits.ts";
import { commandFlags, commands, errors } from "./protocol.ts";
import type { ReadRequest } from "./request-codec.ts";

export interface RequestRefusal {
  /** Of `errors`. */
  readonly error: number;
  readonly text: string;
}

export interface ServedFacts {
  readonly sizeBytes: number;
  readonly writable: boolean;
  /** What will be read soon can be read ahead. */
  readonly cacheable: boolean;
  readonly structured: boolean;
  /** Contexts the client chose. */
  readonly contexts: number;
}

/** Flags each command may have. */
const allowedFlags: Readonly<Record<number, number>> = {
  // A client may set FUA on anything, where the export has it.
  [commands.read]: commandFlags.fua | commandFlags.dontFragment,
  [commands.write]: commandFlags.fua,
  [commands.flush]: commandFlags.fua,
  [commands.trim]: commandFlags.fua,
  [commands.writeZeroes]: commandFlags.fua | commandFlags.noHole,
  [commands.blockStatus]: commandFlags.fua | commandFlags.requestOne,
  [commands.cache]: commandFlags.fua,
};

/** Undefined: it can be done. Every command but `disconnect`. */
export function refuseRequest(request: ReadRequest, facts: ServedFacts): RequestRefusal | undefined {
  const { command, flags, offset, length } = request;
  const allowed = allowedFlags[command];
  if (allowed === undefined || (command === commands.cache && !facts.cacheable))
    return { error: errors.invalid, text: `command ${command} is not served` };
  if ((flags & ~allowed) !== 0) return { error: errors.invalid, text: `flags ${flags} do not go with this command` };
  const writes = command === commands.write || command === commands.trim || command === commands.writeZeroes;
  if (writes && !facts.writable) return { error: errors.permission, text: "the export is read-only" };
  if (command === commands.flush) {
    return offset === 0 && length === 0 ? undefined : { error: errors.invalid, text: "a flush has no range" };
  }
  if (offset + length > facts.sizeBytes) {
    return { error: writes ? errors.noSpace : errors.invalid, text: "beyond the end of the export" };
  }
  if (command === commands.read) return refuseRead(request);
  if (command === commands.blockStatus && (facts.contexts === 0 || !facts.structured || length === 0)) {
    return { error: errors.invalid, text: length === 0 ? "a status of no bytes" : "no context was chosen" };
  }
  return undefined;
}

function refuseRead({ flags, length }: ReadRequest): RequestRefusal | undefined {
  if (length > nbdLimits.requestBytesDefault) return { error: errors.overflow, text: "longer than 32 MiB" };
  if ((flags & commandFlags.dontFragment) !== 0 && length > nbdLimits.serverPieceBytes) {
    return { error: errors.overflow, text: "too long to be answered in one piece" };
  }
  return undefined;
}
