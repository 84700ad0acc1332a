/**
 * What a tracker and a process that asks it for a cut say to each other over the control socket: a line of JSON each, questions and answers in turn. docs/control.md. Pure.
 */
import { isErrorCode, ReplicationError } from "../../base/errors.ts";
import { isBlockSize } from "../../base/units.ts";

/**
 * `cut`: of all disks of the tracker at one moment; the one before comes to nothing. Every block can be read of exports that `whole` names, of others those that
 * are dirty or audited.
 * `check`: whether everything that was read of it so far is as it was. `retire`: a receiver has these cycles of it, the others come to nothing; the cut ends.
 */
export type ControlRequest =
  | { readonly do: "cut"; readonly whole: readonly string[] }
  | { readonly do: "check" }
  | { readonly do: "retire"; readonly cycles: readonly string[] };

/** A disk of the cut, as an export of the NBD server at {@link CutOffer.socket}. */
export interface OfferedDisk {
  /** Of the export. */
  readonly name: string;
  /** Path of the image, and the identity by which a receiver knows it. */
  readonly image: string;
  readonly identity: string;
  readonly cycle: string;
  readonly bases: readonly string[];
  readonly complete: boolean;
  /** Of the tracker: changed and audited blocks are whole ones of this size. */
  readonly blockBytes: number;
  /** Where the cut is not complete: around each such block everything between two multiples of this is as it was. Bytes. */
  readonly grainBytes: number;
  /** There is a context of audited blocks. */
  readonly audited: boolean;
  /** Path of the known state; the one who sends writes the next one beside it. */
  readonly stateFile: string;
}

export interface CutOffer {
  readonly consistency: "crash" | "application";
  /** Path of a unix socket. */
  readonly socket: string;
  readonly disks: readonly OfferedDisk[];
}

export type ControlAnswer =
  | { readonly ok: CutOffer | true }
  | { readonly error: { readonly code: string; readonly message: string } };

/** The socket of an image's tracker, where it is given no other: beside the image. */
export function controlPathOf(imagePath: string): string {
  return `${imagePath}.rbc`;
}

/** Contexts of the exports: NBD clients that know QEMU's bitmaps understand them. */
export const changedContext = "qemu:dirty-bitmap:changed";
export const auditedContext = "qemu:dirty-bitmap:audited";

/** Throws `message-malformed`. */
export function parseRequest(value: unknown): ControlRequest {
  const { do: what, whole, cycles } = fields(value);
  if (what === "check") return { do: "check" };
  if (what === "cut" && isTexts(whole)) return { do: "cut", whole };
  if (what === "retire" && isTexts(cycles)) return { do: "retire", cycles };
  throw malformed();
}

/** The value of an answer. Throws the error it tells, and `message-malformed`. */
export function parseAnswer(value: unknown): CutOffer | true {
  const { ok, error } = fields(value);
  if (error !== undefined) {
    const { code, message } = fields(error);
    const known = typeof code === "string" && isErrorCode(code) ? code : "internal";
    throw new ReplicationError(known, typeof message === "string" ? message : "the tracker gave no reason");
  }
  if (ok === true) return true;
  const { consistency, socket, disks } = fields(ok);
  if ((consistency !== "crash" && consistency !== "application") || typeof socket !== "string") throw malformed();
  if (!Array.isArray(disks) || disks.length === 0) throw malformed();
  return { consistency, socket, disks: disks.map(parseDisk) };
}

function parseDisk(value: unknown): OfferedDisk {
  const { name, image, identity, cycle, bases, complete, blockBytes, grainBytes, audited, stateFile } = fields(value);
  const texts = [name, image, identity, cycle, stateFile];
  if (!isTexts(texts) || !isTexts(bases)) throw malformed();
  if (typeof complete !== "boolean" || typeof audited !== "boolean") throw malformed();
  if (typeof blockBytes !== "number" || !isBlockSize(blockBytes)) throw malformed();
  if (typeof grainBytes !== "number" || !isBlockSize(grainBytes)) throw malformed();
  const [one = "", two = "", three = "", four = "", five = ""] = texts;
  const sizes = { blockBytes, grainBytes };
  return { name: one, image: two, identity: three, cycle: four, stateFile: five, bases, complete, ...sizes, audited };
}

function fields(value: unknown): Readonly<Record<string, unknown>> {
  if (typeof value !== "object" || value === null) throw malformed();
  return value as Readonly<Record<string, unknown>>;
}

function isTexts(value: unknown): value is readonly string[] {
  return Array.isArray(value) && value.every((each) => typeof each === "string");
}

function malformed(): ReplicationError {
  return new ReplicationError("message-malformed", "the control socket: nothing that is said there");
}
