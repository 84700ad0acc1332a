/** Lines of JSON over a byte stream. */
import { expect, test } from "vitest";
import type { ReplicationError } from "../../src/base/errors.ts";
import type { ByteSink, ByteStream } from "../../src/transport/byte-stream.ts";
import { JsonLines, lineBytesMax } from "../../src/transport/json-lines.ts";

/** A stream whose other side is the test. */
function stream() {
  let sink: ByteSink | undefined;
  const sent: string[] = [];
  const fake: ByteStream = {
    ...{ peer: "peer", identity: undefined, bytesQueued: 0 },
    receive(to) {
      sink = to;
    },
    write: (parts) => void sent.push(Buffer.concat(parts).toString()),
    pause: () => undefined,
    resume: () => undefined,
    close: () => sink?.ended(undefined),
    destroy: (error) => sink?.ended(error),
  };
  const arrive = (text: string, pieceBytes: number): void => {
    const bytes = Buffer.from(text);
    for (let at = 0; at < bytes.length; ) {
      const room = sink?.room() ?? new Uint8Array(0);
      const piece = bytes.subarray(at, at + Math.min(pieceBytes, room.length));
      room.set(piece);
      sink?.filled(piece.length);
      at += piece.length;
    }
  };
  return { fake, sent, arrive };
}

test.each([1, 2, 7, 1_000_000])("lines come whole, in pieces of %d bytes", (pieceBytes) => {
  const { fake, sent, arrive } = stream();
  const values: unknown[] = [];
  let end: { readonly error: ReplicationError | undefined } | undefined;
  const lines = new JsonLines(fake, { onValue: (value) => values.push(value), onEnd: (error) => (end = { error }) });
  const long = "ü".repeat(30_000);
  arrive(`{"a":1}\n"${long}"\n[]\nnull\n{"half":`, pieceBytes);
  expect(values).toEqual([{ a: 1 }, long, [], null]);
  arrive("2}\n", pieceBytes);
  expect(values.at(-1)).toEqual({ half: 2 });
  lines.send({ text: "a\nb" });
  expect(sent).toEqual(['{"text":"a\\nb"}\n']);
  lines.close();
  expect(end).toEqual({ error: undefined });
});

test("what is no line of JSON is said so, and no line takes more memory than the longest", () => {
  const { fake, arrive } = stream();
  new JsonLines(fake, { onValue: () => undefined, onEnd: () => undefined });
  expect(() => arrive("GET / HTTP/1.1\r\n", 100)).toThrow("no JSON");
  const second = stream();
  new JsonLines(second.fake, { onValue: () => undefined, onEnd: () => undefined });
  expect(() => second.arrive(`"${"x".repeat(lineBytesMax)}`, 100)).toThrow(`more than ${lineBytesMax} bytes`);
});
