/** GUIDs as Windows stores them: the first three groups little endian. As text: lower case, without braces. */

export const GUID_BYTES = 16;

/** Of no log, no parent. */
export const noGuid = "00000000-0000-0000-0000-000000000000";

/** Which byte each pair of digits is. */
const order = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
const groupEnds = new Set([3, 5, 7, 9]);

export function readGuid(bytes: Uint8Array, at: number): string {
  let text = "";
  for (const [index, place] of order.entries()) {
    text += (bytes[at + place] ?? 0).toString(16).padStart(2, "0");
    if (groupEnds.has(index)) text += "-";
  }
  return text;
}

export function writeGuid(guid: string, target: Uint8Array, at: number): void {
  const digits = guid.replaceAll("-", "");
  for (const [index, place] of order.entries()) {
    target[at + place] = Number.parseInt(digits.slice(index * 2, index * 2 + 2), 16);
  }
}

/** "{6B29...}" in any case, as parent locators have it. Undefined: not a GUID. */
export function parseGuid(text: string): string | undefined {
  const found = /^\{?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})\}?$/i.exec(text.trim());
  return found?.[1]?.toLowerCase();
}
