/** What each byte of an undo log belongs to, by docs/formats.md. */
export type UndoPlace =
  | { readonly kind: "header" | "padding" | "index" | "footer" | "checkpoint" | "entries" }
  | { readonly kind: "content"; readonly block: number };

export interface UndoSpan {
  readonly start: number;
  readonly end: number;
  readonly place: UndoPlace;
}

const batchKinds = ["", "entries", "checkpoint", "index", "footer"] as const;

/** All that is no padding, ascending. */
export function spansOf(log: Uint8Array): readonly UndoSpan[] {
  const bytes = Buffer.from(log.buffer, log.byteOffset, log.byteLength);
  const spans: UndoSpan[] = [{ start: 0, end: 64, place: { kind: "header" } }];
  for (let at = 4096; at + 64 <= bytes.length; at += 4096) {
    if (bytes.toString("latin1", at, at + 8) !== "rplubtch") continue;
    const kind = batchKinds[bytes.readUInt8(at + 32)] ?? "";
    if (kind === "") throw new Error("a batch has a kind");
    let content = at + 64 + bytes.readUInt32LE(at + 44);
    spans.push({ start: at, end: content, place: { kind } });
    const contentBytes = Number(bytes.readBigUInt64LE(at + 48));
    if (kind === "index") {
      const start = Math.ceil(content / 4096) * 4096;
      spans.push({ start, end: start + contentBytes, place: { kind } });
      continue;
    }
    // Heads of entries: 24 bytes, a digest of 16, a mask of 1.
    for (let entry = 0; kind === "entries" && entry < bytes.readUInt32LE(at + 40); entry++) {
      const head = at + 64 + entry * 41;
      const end = content + bytes.readUInt32LE(head + 16);
      spans.push({ start: content, end, place: { kind: "content", block: Number(bytes.readBigUInt64LE(head)) } });
      content = end;
    }
  }
  return spans;
}

export function placesOf(log: Uint8Array): (at: number) => UndoPlace {
  const spans = spansOf(log);
  return (at) => spans.find(({ start, end }) => at >= start && at < end)?.place ?? { kind: "padding" };
}
