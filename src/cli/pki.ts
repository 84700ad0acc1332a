import { systemClock } from "../base/clock.ts";
import { systemRandom } from "../base/random.ts";
import { ReplicationError } from "../base/errors.ts";
import { createAuthority, issueCertificate } from "../transport/pki.ts";
import { parseArguments } from "./arguments.ts";
import { exitCodes } from "./exit-codes.ts";
import { formatTime, parseCount } from "./values.ts";
import type { Verb } from "./verb.ts";

const help = `usage: replicate pki init DIR [--cn NAME] [--days N] [--renew]
       replicate pki issue DIR NAME [--host H]... [--days N] [--renew]

A small certificate authority for your sites.

  init DIR               makes the authority: DIR/ca/cert.pem, DIR/ca/key.pem (keep the key to yourself)
  issue DIR NAME         makes key and certificate of a node: DIR/NAME/{ca,cert,key}.pem; copy that folder to the node.
                         NAME is the identity the other side sees
  --host H               a host name or IP address under which a receiver is reached; may be given several times
  --cn NAME              the authority's name
  --days N               validity (default 10 years for the authority, 2 years for a node)
  --renew                make a new certificate for one that exists; a running receiver picks it up by itself

Example:
  replicate pki init pki
  replicate pki issue pki recv --host backup.example
  replicate pki issue pki web
`;

export const pkiVerb: Verb = {
  help,
  async run(args, io) {
    const [action, ...rest] = args;
    const common = { clock: systemClock, random: systemRandom };
    if (action === "init") {
      const given = parseArguments(rest, {
        verb: "pki init",
        flags: ["renew"],
        options: ["cn", "days"],
        positionals: ["DIR"],
      });
      const issued = await createAuthority({
        directory: given.positionals[0] ?? "",
        renew: given.flag("renew"),
        ...daysOf(given.text("days")),
        ...(given.text("cn") === undefined ? {} : { commonName: given.text("cn") ?? "" }),
        ...common,
      });
      io.out(`authority in ${issued.directory}, valid until ${formatTime(issued.expiresAt)}\n`);
      return exitCodes.done;
    }
    if (action === "issue") {
      const given = parseArguments(rest, {
        verb: "pki issue",
        flags: ["renew"],
        options: ["days"],
        lists: ["host"],
        positionals: ["DIR", "NAME"],
      });
      const hosts = given.texts("host");
      const issued = await issueCertificate({
        directory: given.positionals[0] ?? "",
        name: given.positionals[1] ?? "",
        renew: given.flag("renew"),
        ...daysOf(given.text("days")),
        ...(hosts.length === 0 ? {} : { hosts }),
        ...common,
      });
      io.out(`${issued.directory}: ${issued.hosts.join(", ")}; valid until ${formatTime(issued.expiresAt)}\n`);
      io.out(`fingerprint ${issued.fingerprint}\n`);
      return exitCodes.done;
    }
    throw new ReplicationError("usage", "pki: write init or issue");
  },
};

function daysOf(text: string | undefined): { readonly days?: number } {
  return text === undefined ? {} : { days: parseCount(text, "--days", { min: 1, max: 36_500 }) };
}
