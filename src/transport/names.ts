/** Names of nodes and hosts, as they stand in certificates. Pure. */
import { isIP } from "node:net";
import { ReplicationError } from "../base/errors.ts";

/** A subject alternative name: what a client may call this node to reach it. */
export interface HostName {
  readonly type: "dns" | "ip";
  readonly value: string;
}

const nodeName = /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/;
const hostLabel = /^[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?$/;

/** Throws `usage` unless `name` may be a node: it becomes the folder of its key and the subject of its certificate. */
export function checkNodeName(name: string): void {
  if (!nodeName.test(name)) {
    throw new ReplicationError(
      "usage",
      `"${name}" cannot be the name of a node: use 1 to 63 letters, digits, ".", "_" or "-", the first a letter or a digit`,
    );
  }
  // The authority's own folder, on file systems that know no case too.
  if (name.toLowerCase() === "ca")
    throw new ReplicationError("usage", `"ca" is the authority's own name: give the node another one`);
}

/** A host name or an IP address (`[::1]` or `::1`), or undefined when it is neither. */
export function parseHost(text: string): HostName | undefined {
  const bare = text.startsWith("[") && text.endsWith("]") ? text.slice(1, -1) : text;
  if (isIP(bare) !== 0) return { type: "ip", value: bare };
  const isName = text.length <= 253 && text.split(".").every((label) => hostLabel.test(label));
  return isName ? { type: "dns", value: text.toLowerCase() } : undefined;
}

/** The alternative names of a node: its own name where that can be a host, then `hosts`, each once. Throws `usage`. */
export function hostNames(name: string, hosts: readonly string[]): readonly HostName[] {
  const own = parseHost(name);
  const names: HostName[] = own === undefined ? [] : [own];
  for (const host of hosts) {
    const parsed = parseHost(host);
    if (parsed === undefined) {
      throw new ReplicationError("usage", `"${host}" is neither a host name nor an IP address`);
    }
    if (!names.some((other) => other.value === parsed.value)) names.push(parsed);
  }
  return names;
}

/** `host:port`, with brackets round an IPv6 address. */
export function formatAddress(host: string, port: number): string {
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

/** Whether only this machine reaches an address. A name is none, but `localhost`: what it stands for may change. */
export function isLoopback(host: string): boolean {
  return host === "localhost" || host === "::1" || /^127(?:\.\d{1,3}){3}$/.test(host);
}
