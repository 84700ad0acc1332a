/** Where an NBD server listens, as people write it. */
import { ReplicationError } from "../base/errors.ts";
import type { NbdPlace } from "../nbd/nbd-uri.ts";
import { parseAddress } from "./values.ts";

/** `unix:/PATH` or `HOST:PORT`. Throws `usage`. */
export function parseNbdPlace(text: string): NbdPlace {
  if (!text.startsWith("unix:")) return { kind: "tcp", ...parseAddress(text.replace(/^tcp:\/\//, ""), "--nbd") };
  const path = text.slice("unix:".length);
  if (path === "") throw new ReplicationError("usage", "--nbd: unix:/PATH names the socket");
  return { kind: "unix", path };
}
