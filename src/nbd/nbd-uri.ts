/** Addresses of NBD exports as people write them (the NBD URI specification, without its shared keys). Pure. */
import { ReplicationError } from "../base/errors.ts";
import { nbdLimits } from "./nbd-limits.ts";
import { defaultPort } from "./protocol.ts";

export interface NbdAddress {
  /** TLS is required. */
  readonly tls: boolean;
  readonly place: NbdPlace;
  /** Name of the export; empty: the server's default. */
  readonly exportName: string;
}

export type NbdPlace =
  | { readonly kind: "tcp"; readonly host: string; readonly port: number }
  | { readonly kind: "unix"; readonly path: string };

const schemes = ["nbd", "nbds", "nbd+unix", "nbds+unix"] as const;

export function isNbdUri(text: string): boolean {
  return schemes.some((scheme) => text.startsWith(`${scheme}:`));
}

/** Longest path of a unix socket on Linux, without its final NUL. */
export const socketPathBytesMax = 107;

/**
 * `nbd://host:port/export`, `nbds://host/export`, `nbd+unix:///export?socket=/path`. Throws `usage`, saying how to write it; what looks
 * like a password is never repeated.
 */
export function parseNbdUri(text: string): NbdAddress {
  const { scheme, host, path, query } = split(text);
  const exportName = decode(path.replace(/^\//, ""), "the export's name");
  if (Buffer.byteLength(exportName) > nbdLimits.stringBytesMax || exportName.includes("\0")) {
    throw usage("the export's name is longer than 4096 bytes, or has a NUL");
  }
  const tls = scheme.startsWith("nbds");
  const socket = parseQuery(query);
  if (scheme.endsWith("+unix")) {
    if (host !== "")
      throw usage(`${scheme}: names no host: write ${scheme}:///EXPORT?socket=/PATH, with three slashes`);
    if (socket === undefined || socket === "")
      throw usage(`${scheme}: needs its socket: ${scheme}:///EXPORT?socket=/PATH`);
    if (Buffer.byteLength(socket) > socketPathBytesMax) {
      throw usage(`the path of a socket has at most ${socketPathBytesMax} bytes: ${JSON.stringify(socket)} is longer`);
    }
    return { tls, place: { kind: "unix", path: socket }, exportName };
  }
  if (socket !== undefined) throw usage(`a socket goes with ${scheme}+unix:///EXPORT?socket=/PATH`);
  return { tls, place: parseHost(host), exportName };
}

function split(text: string) {
  const match = /^([a-z+]+):\/\/([^/?#]*)(\/[^?#]*)?(?:\?([^#]*))?$/.exec(text);
  const [, scheme = "", authority = "", path = "", query = ""] = match ?? [];
  // Before anything is repeated in a message.
  if (authority.includes("@") || (match === null && text.includes("@"))) {
    throw usage("users and passwords in an address are not supported: nbds:// shows certificates");
  }
  if (match === null || !schemes.some((known) => known === scheme)) {
    throw usage(
      `${JSON.stringify(text)} is none of nbd://HOST:PORT/EXPORT, nbds://HOST/EXPORT, nbd+unix:///EXPORT?socket=/PATH`,
    );
  }
  return { scheme, host: authority, path, query };
}

function parseHost(authority: string): NbdPlace {
  const match = /^(?:\[([^\]]+)\]|([^:[\]]+))(?::(\d{1,5}))?$/.exec(authority);
  const host = decode(match?.[1] ?? match?.[2] ?? "", "the host");
  const port = Number(match?.[3] ?? defaultPort);
  if (host === "" || port < 1 || port > 65_535) {
    throw usage(
      `${JSON.stringify(authority)} is no address: write nbd://host/EXPORT, nbd://host:10809/EXPORT or nbd://[::1]/EXPORT`,
    );
  }
  return { kind: "tcp", host, port };
}

/** The socket; nothing else is known. */
function parseQuery(query: string): string | undefined {
  let socket: string | undefined;
  for (const part of query === "" ? [] : query.split("&")) {
    const at = part.indexOf("=");
    const name = at < 0 ? part : part.slice(0, at);
    if (name !== "socket" || socket !== undefined) {
      throw usage(`${JSON.stringify(name)} in the address is not known: only socket=/PATH may follow the "?", once`);
    }
    socket = decode(part.slice(at + 1), "the socket's path");
  }
  return socket;
}

function decode(text: string, what: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw usage(`${what} ${JSON.stringify(text)} has a "%" that is no escape: write %25`);
  }
}

function usage(what: string): ReplicationError {
  return new ReplicationError("usage", `NBD: ${what}`);
}

/** The same text for the same export, however it was written. `unix` paths as they are: who wants them absolute makes them so before. */
export function formatNbdUri({ tls, place, exportName }: NbdAddress): string {
  const name = encodeURIComponent(exportName);
  const scheme = tls ? "nbds" : "nbd";
  if (place.kind === "unix") return `${scheme}+unix:///${name}?socket=${encodePath(place.path)}`;
  const host = place.host.includes(":") ? `[${place.host}]` : place.host.toLowerCase();
  return `${scheme}://${host}:${place.port}/${name}`;
}

function encodePath(path: string): string {
  return path.split("/").map(encodeURIComponent).join("/");
}
