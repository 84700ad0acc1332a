import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { pkiVerb } from "../../src/cli/pki.ts";
import type { CliIo } from "../../src/cli/verb.ts";

let directory: string;
let out = "";
const io: CliIo = {
  out: (text) => {
    out += text;
  },
  err: () => undefined,
  env: {},
  cwd: "/",
  signal: new AbortController().signal,
  isTerminal: false,
  columns: 80,
};

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "replicate-pki-"));
  out = "";
});
afterEach(() => rm(directory, { recursive: true }));

test("init and issue say where the files are, until when, and for which hosts", async () => {
  const dir = join(directory, "pki");
  expect(await pkiVerb.run(["init", dir, "--cn", "Two sites"], io)).toBe(0);
  expect(await pkiVerb.run(["issue", dir, "recv", "--host", "backup.example", "--host", "::1"], io)).toBe(0);
  expect((await readdir(join(dir, "recv"))).sort()).toEqual(["ca.pem", "cert.pem", "key.pem"]);
  const [authority = "", node = "", fingerprint = ""] = out.split("\n");
  expect(authority).toMatch(/^authority in .*pki\/ca, valid until \d{4}-/);
  expect(node).toMatch(/recv: recv, backup\.example, 0:0:0:0:0:0:0:1; valid until \d{4}-/);
  expect(fingerprint).toMatch(/^fingerprint [0-9A-F:]{95}$/);
  expect(await pkiVerb.run(["issue", dir, "recv", "--renew", "--days", "10"], io)).toBe(0);
});

test.each([
  [[]],
  [["make"]],
  [["init"]],
  [["init", "DIR", "extra"]],
  [["issue", "DIR"]],
  [["issue", "DIR", "node", "--days", "0"]],
  [["issue", "DIR", "node", "--host"]],
  [["issue", "DIR", "node", "--force"]],
  [["issue", "DIR", "../node"]],
  [["issue", "DIR", "node", "--renew"]],
])("wrong usage changes nothing: pki %j", async (args) => {
  const given = args.map((arg) => (arg === "DIR" ? directory : arg));
  if (args[0] === "issue") await pkiVerb.run(["init", directory], io);
  const before = await readdir(directory);
  await expect(pkiVerb.run(given, io)).rejects.toMatchObject({ code: "usage" });
  expect(await readdir(directory)).toEqual(before);
});
