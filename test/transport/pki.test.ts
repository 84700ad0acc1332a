import { X509Certificate } from "node:crypto";
import { mkdtemp, readdir, readFile, rm, stat, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { systemClock } from "../../src/base/clock.ts";
import { systemRandom } from "../../src/base/random.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { carriesMark, markIdentifier } from "../../src/transport/certificate-mark.ts";
import { checkNodeName, hostNames, parseHost } from "../../src/transport/names.ts";
import { createAuthority, issueCertificate } from "../../src/transport/pki.ts";
import { day, minute, shiftedClock } from "./kit.ts";

let directory: string;
const common = { clock: systemClock, random: systemRandom };

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), "replicate-pki-"));
});
afterEach(() => rm(directory, { recursive: true }));

async function certificate(...path: string[]): Promise<X509Certificate> {
  return new X509Certificate(await readFile(join(directory, ...path)));
}

async function files(): Promise<Record<string, string>> {
  const content: Record<string, string> = {};
  for (const entry of await readdir(directory, { recursive: true, withFileTypes: true })) {
    if (!entry.isFile()) continue;
    const path = join(entry.parentPath, entry.name);
    content[path] = await readFile(path, "utf8");
  }
  return content;
}

describe("the authority", () => {
  test("lies in ca/, its key readable by nobody else", async () => {
    const issued = await createAuthority({ directory, commonName: "Two Sites (test)", ...common });
    const found = await certificate("ca", "cert.pem");
    expect(found.subject).toBe("CN=Two Sites (test)");
    expect(found.ca).toBe(true);
    expect(found.verify(found.publicKey)).toBe(true);
    expect(found.publicKey.asymmetricKeyDetails?.namedCurve).toBe("prime256v1");
    expect(carriesMark(found.raw)).toBe(true);
    expect(found.fingerprint256).toBe(issued.fingerprint);
    expect((await stat(join(directory, "ca", "key.pem"))).mode & 0o777).toBe(0o600);
    expect((await stat(join(directory, "ca"))).mode & 0o777).toBe(0o700);
    expect((await readdir(join(directory, "ca"))).sort()).toEqual(["cert.pem", "key.pem"]);
  });

  test("is never overwritten without renew", async () => {
    await createAuthority({ directory, ...common });
    const before = await files();
    await expect(createAuthority({ directory, ...common })).rejects.toMatchObject({ code: "usage" });
    expect(await files()).toEqual(before);
  });

  test("half an authority is neither overwritten nor renewed", async () => {
    await createAuthority({ directory, ...common });
    await rm(join(directory, "ca", "cert.pem"));
    const before = await files();
    for (const renew of [false, true]) {
      await expect(createAuthority({ directory, renew, ...common })).rejects.toThrow(/not both/);
    }
    expect(await files()).toEqual(before);
  });

  test("renewed keeps name and key, so that what it issued stays valid", async () => {
    await createAuthority({ directory, commonName: "one", days: 10, ...common });
    await issueCertificate({ directory, name: "node", ...common });
    const old = await certificate("ca", "cert.pem");
    await createAuthority({ directory, renew: true, commonName: "ignored", ...common });
    const renewed = await certificate("ca", "cert.pem");
    expect(renewed.subject).toBe("CN=one");
    expect(renewed.serialNumber).not.toBe(old.serialNumber);
    expect(Date.parse(renewed.validTo)).toBeGreaterThan(Date.parse(old.validTo));
    const node = await certificate("node", "cert.pem");
    expect(node.checkIssued(renewed) && node.verify(renewed.publicKey)).toBe(true);
  });

  test("nothing to renew is an error, and so are odd names and validities", async () => {
    await expect(createAuthority({ directory, renew: true, ...common })).rejects.toThrow(/nothing to renew/);
    for (const commonName of ["", "a,b=c", 'a"b', "a\nb", "x".repeat(65)]) {
      await expect(createAuthority({ directory, commonName, ...common })).rejects.toMatchObject({ code: "usage" });
    }
    for (const days of [0, -1, Number.NaN, 36_501]) {
      await expect(createAuthority({ directory, days, ...common })).rejects.toMatchObject({ code: "usage" });
    }
    expect(await files()).toEqual({});
  });
});

describe("a node's certificate", () => {
  test("is for the node's name and its hosts, both ways, and marked", async () => {
    await createAuthority({ directory, ...common });
    const issued = await issueCertificate({
      directory,
      name: "node-1",
      hosts: ["Backup.example", "127.0.0.1", "[::1]", "node-1"],
      ...common,
    });
    const found = await certificate("node-1", "cert.pem");
    const authority = await certificate("ca", "cert.pem");
    expect(found.subject).toBe("CN=node-1");
    expect(found.ca).toBe(false);
    expect(issued.hosts).toEqual(["node-1", "backup.example", "127.0.0.1", "0:0:0:0:0:0:0:1"]);
    expect(found.checkHost("backup.example")).toBe("backup.example");
    expect(found.checkIP("::1")).toBe("::1");
    expect(found.checkIP("127.0.0.2")).toBeUndefined();
    expect([...found.keyUsage].sort()).toEqual(["1.3.6.1.5.5.7.3.1", "1.3.6.1.5.5.7.3.2"]);
    expect(found.checkIssued(authority) && found.verify(authority.publicKey)).toBe(true);
    expect(carriesMark(found.raw)).toBe(true);
    expect(await readFile(join(directory, "node-1", "ca.pem"), "utf8")).toBe(
      await readFile(join(directory, "ca", "cert.pem"), "utf8"),
    );
    expect((await stat(join(directory, "node-1", "key.pem"))).mode & 0o777).toBe(0o600);
    expect((await readdir(join(directory, "node-1"))).sort()).toEqual(["ca.pem", "cert.pem", "key.pem"]);
  });

  test("is valid from five minutes ago, for two years, and no longer than its authority (C-91)", async () => {
    const now = Date.UTC(2026, 5, 1, 12, 0, 0);
    const clock = createFakeClock({ now });
    await createAuthority({ directory, days: 1_000, clock, random: systemRandom });
    await issueCertificate({ directory, name: "a", clock, random: systemRandom });
    await issueCertificate({ directory, name: "b", days: 2_000, clock, random: systemRandom });
    const a = await certificate("a", "cert.pem");
    expect(Date.parse(a.validFrom)).toBe(now - 5 * minute);
    expect(Date.parse(a.validTo)).toBe(now + 730 * day);
    expect((await certificate("b", "cert.pem")).validTo).toBe((await certificate("ca", "cert.pem")).validTo);
  });

  test("is never overwritten without renew", async () => {
    await createAuthority({ directory, ...common });
    await issueCertificate({ directory, name: "node", ...common });
    const before = await files();
    await expect(issueCertificate({ directory, name: "node", ...common })).rejects.toThrow(/--renew/);
    expect(await files()).toEqual(before);
  });

  test("renewed keeps key and hosts unless told otherwise", async () => {
    await createAuthority({ directory, ...common });
    await issueCertificate({ directory, name: "node", hosts: ["backup.example"], ...common });
    const key = await readFile(join(directory, "node", "key.pem"), "utf8");
    const first = await certificate("node", "cert.pem");
    const kept = await issueCertificate({ directory, name: "node", renew: true, ...common });
    expect(kept.hosts).toEqual(["node", "backup.example"]);
    expect(await readFile(join(directory, "node", "key.pem"), "utf8")).toBe(key);
    expect(kept.fingerprint).not.toBe(first.fingerprint256);
    const changed = await issueCertificate({
      directory,
      name: "node",
      renew: true,
      newKey: true,
      hosts: [],
      ...common,
    });
    expect(changed.hosts).toEqual(["node"]);
    expect(await readFile(join(directory, "node", "key.pem"), "utf8")).not.toBe(key);
    expect((await readdir(join(directory, "node"))).sort()).toEqual(["ca.pem", "cert.pem", "key.pem"]);
  });

  test("needs an authority of ours that can sign", async () => {
    await expect(issueCertificate({ directory, name: "node", ...common })).rejects.toThrow(/pki init/);
    await createAuthority({ directory, days: 1, clock: shiftedClock(-2 * day), random: systemRandom });
    await expect(issueCertificate({ directory, name: "node", ...common })).rejects.toMatchObject({
      code: "certificate-expired",
    });
    await createAuthority({ directory, renew: true, ...common });
    await writeFile(join(directory, "ca", "key.pem"), "no key");
    await expect(issueCertificate({ directory, name: "node", ...common })).rejects.toMatchObject({
      code: "certificate-unusable",
    });
    expect(await readdir(directory)).toEqual(["ca"]);
  });
});

describe("names", () => {
  test("of nodes: letters, digits and .-_ only, never a path", () => {
    for (const name of ["a", "Node-1", "a.b_c", "1", "x".repeat(63)]) expect(() => checkNodeName(name)).not.toThrow();
    for (const name of ["", ".", "..", "-a", "a/b", "a\\b", "a b", "é", "x".repeat(64), "ca", "CA", "a\n"]) {
      expect(() => checkNodeName(name)).toThrow(expect.objectContaining({ code: "usage" }));
    }
  });

  test("of hosts: DNS names and addresses", () => {
    expect(parseHost("Backup.Example")).toEqual({ type: "dns", value: "backup.example" });
    expect(parseHost("10.1.2.3")).toEqual({ type: "ip", value: "10.1.2.3" });
    expect(parseHost("[fe80::1]")).toEqual({ type: "ip", value: "fe80::1" });
    for (const host of ["", "a..b", "-a", "a_b", "*.example", "a:7000", "x".repeat(64)]) {
      expect(parseHost(host)).toBeUndefined();
    }
    expect(hostNames("under_score", [])).toEqual([]);
    expect(() => hostNames("a", ["b c"])).toThrow(expect.objectContaining({ code: "usage" }));
  });
});

test("the mark is found only where a certificate has extensions", async () => {
  await createAuthority({ directory, ...common });
  const { raw } = await certificate("ca", "cert.pem");
  for (let length = 0; length < raw.length; length++) expect(carriesMark(raw.subarray(0, length))).toBe(false);
  // The identifier elsewhere, here as the whole input, is no mark.
  expect(carriesMark(Buffer.from(markIdentifier))).toBe(false);
});
