/**
 * A WebAssembly module with the exports of the lz4 fallback whose first call traps and marks its memory; later calls on
 * the same memory would succeed with 64 zero bytes. So it tells an instance that was replaced after a trap from one
 * that was kept.
 */
declare const WebAssembly: { readonly Module: new (bytes: Uint8Array) => object };

const ascii = (text: string): number[] => [text.length, ...Buffer.from(text, "latin1")];
const section = (id: number, entries: readonly (readonly number[])[]): number[] => {
  const content = [entries.length, ...entries.flat()];
  return [id, content.length, ...content];
};
const body = (code: readonly number[]): number[] => [code.length + 2, 0, ...code, 0x0b];

const int = 0x7f;
const constant = (...signedLeb: number[]): number[] => [0x41, ...signedLeb];

const trapOnce = [
  ...constant(0),
  ...[0x2d, 0, 0], // i32.load8_u
  0x45, // i32.eqz
  ...[0x04, 0x40], // if
  ...constant(0),
  ...constant(1),
  ...[0x3a, 0, 0], // i32.store8
  0x00, // unreachable
  0x0b, // end
  ...[0x20, 0, ...constant(0x80, 0x10), 0x36, 2, 0], // result.pointer = 2048
  ...[0x20, 0, ...constant(0xc0, 0), 0x36, 2, 4], // result.length = 64
];

export function trappingModule(): object {
  return new WebAssembly.Module(
    Uint8Array.from([
      ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
      ...section(1, [
        [0x60, 3, int, int, int, 0],
        [0x60, 1, int, 1, int],
        [0x60, 2, int, int, 0],
      ]),
      ...section(3, [[0], [1], [1], [2]]),
      ...section(5, [[0, 1]]),
      ...section(7, [
        [...ascii("memory"), 2, 0],
        [...ascii("compress"), 0, 0],
        [...ascii("decompress"), 0, 0],
        [...ascii("__wbindgen_add_to_stack_pointer"), 0, 1],
        [...ascii("__wbindgen_malloc"), 0, 2],
        [...ascii("__wbindgen_free"), 0, 3],
      ]),
      ...section(10, [body(trapOnce), body(constant(0x80, 0x04)), body(constant(0x80, 0x08)), body([])]),
    ]),
  );
}
