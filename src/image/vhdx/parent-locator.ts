/** What a differencing VHDX says of its parent. Pure. [MS-VHDX] 2.6.2.6 */
import type { NamedPath } from "../parents.ts";
import { parseGuid, readGuid } from "./guid.ts";
import type { Parsed } from "./headers.ts";

/** The only kind there is. */
const vhdxLocator = "b04aefb7-d19e-4a81-b789-25b8e9445913";
/** Windows writes five; a file with more than this many is no file of anybody's. */
const pairsMax = 64;

export interface ParentLocator {
  /** GUIDs of which the parent's data has one. */
  readonly linkages: readonly string[];
  /** As they are written, in the order in which they are to be tried. */
  readonly paths: readonly NamedPath[];
  readonly pairs: Readonly<Record<string, string>>;
}

export function parseParentLocator(bytes: Uint8Array): Parsed<ParentLocator> {
  if (bytes.length < 20) return { problem: "it is cut short" };
  const kind = readGuid(bytes, 0);
  if (kind !== vhdxLocator) return { problem: `it is of the unknown kind ${kind}` };
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const count = view.getUint16(18, true);
  if (count > pairsMax || 20 + count * 12 > bytes.length) return { problem: `it has ${count} entries` };
  const pairs: Record<string, string> = {};
  for (let index = 0; index < count; index++) {
    const at = 20 + index * 12;
    const key = textAt(bytes, view.getUint32(at, true), view.getUint16(at + 8, true));
    const value = textAt(bytes, view.getUint32(at + 4, true), view.getUint16(at + 10, true));
    if (key === undefined || value === undefined) return { problem: `its entry ${index} lies outside of it` };
    if (!Object.hasOwn(pairs, key)) Object.defineProperty(pairs, key, { value, enumerable: true });
  }
  const linkages = ["parent_linkage", "parent_linkage2"].flatMap((key) => {
    const guid = Object.hasOwn(pairs, key) ? parseGuid(pairs[key] ?? "") : undefined;
    return guid === undefined || /^[0-]*$/.test(guid) ? [] : [guid];
  });
  if (linkages.length === 0) return { problem: "it does not say which data its parent has (parent_linkage)" };
  const paths = (
    [
      ["relative", "relative_path"],
      ["volume", "volume_path"],
      ["absolute", "absolute_win32_path"],
    ] as const
  ).flatMap(([how, key]) => {
    const path = Object.hasOwn(pairs, key) ? pairs[key] : undefined;
    return path === undefined || path === "" ? [] : [{ kind: how, path }];
  });
  return { value: { linkages, paths, pairs } };
}

function textAt(bytes: Uint8Array, offset: number, length: number): string | undefined {
  if (offset + length > bytes.length || length % 2 !== 0) return undefined;
  return Buffer.from(bytes.subarray(offset, offset + length))
    .toString("utf16le")
    .replace(/\0+$/, "");
}
