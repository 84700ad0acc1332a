/**
 * Has a socket, of TLS above all, put what it receives into memory of ours. Node can do so (`onread`) but offers it for sockets it connects itself only, and
 * hands an accepted socket each record of 16 KiB in an array of its own: that was half of a receiver's processor time (measured). So
 * the same switch is set here on a socket that exists. It lies inside Node: where it is not found as expected, nothing is changed and
 * the socket goes on emitting `data`.
 */
import type { Socket } from "node:net";

export interface DirectReception {
  /** From now on bytes go into `target` until the next call of `next`: memory that was given before is not written any more. */
  redirect(target: Uint8Array): void;
}

/** What the switch consists of. */
interface Insides {
  readonly buffer: symbol;
  readonly callback: symbol;
  readonly generate: symbol;
}

interface Handle {
  useUserBuffer(target: Uint8Array): void;
}

/**
 * `received(count)` is called for each piece put into the array `next` returned last, or `first`; then `next` is asked for the
 * following one. Neither may throw, and `received` returns true: to go on. Bytes the socket has buffered are to be read before. Undefined: not possible here, nothing was changed.
 */
export function receiveDirectly(
  socket: Socket,
  first: Uint8Array,
  received: (count: number) => true,
  next: () => Uint8Array,
): DirectReception | undefined {
  const insides = findInsides(socket);
  const handle = findHandle(socket);
  if (insides === undefined || handle === undefined) return undefined;
  const set = (symbol: symbol, value: unknown): void => {
    Reflect.set(socket, symbol, value);
  };
  const redirect = (target: Uint8Array): void => {
    // A closed socket has no handle, and reads nothing more.
    const current = findHandle(socket);
    if (current === undefined) return;
    set(insides.buffer, target);
    current.useUserBuffer(target);
  };
  set(insides.callback, received);
  set(insides.generate, next);
  redirect(first);
  return { redirect };
}

function findInsides(socket: Socket): Insides | undefined {
  const symbols = Object.getOwnPropertySymbols(socket);
  const find = (name: string): symbol | undefined => {
    const found = symbols.filter((symbol) => symbol.description === name);
    // Unused so far: what a socket was given when it was made is left alone.
    return found.length === 1 && found[0] !== undefined && Reflect.get(socket, found[0]) === null
      ? found[0]
      : undefined;
  };
  const buffer = find("kBuffer");
  const callback = find("kBufferCb");
  const generate = find("kBufferGen");
  if (buffer === undefined || callback === undefined || generate === undefined) return undefined;
  return { buffer, callback, generate };
}

function findHandle(socket: Socket): Handle | undefined {
  const handle: unknown = Reflect.get(socket, "_handle");
  return isHandle(handle) ? handle : undefined;
}

function isHandle(handle: unknown): handle is Handle {
  return (
    typeof handle === "object" &&
    handle !== null &&
    "useUserBuffer" in handle &&
    typeof handle.useUserBuffer === "function"
  );
}
