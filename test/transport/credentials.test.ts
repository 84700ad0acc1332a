import { chmod, copyFile, mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { systemClock } from "../../src/base/clock.ts";
import { silentLogger } from "../../src/base/logger.ts";
import { systemRandom } from "../../src/base/random.ts";
import { createFakeClock } from "../../src/testing/fake-clock.ts";
import { watchCredentials } from "../../src/transport/credential-watch.ts";
import { type Credentials, loadCredentials } from "../../src/transport/credentials.ts";
import { issueCertificate } from "../../src/transport/pki.ts";
import { connectTls } from "../../src/transport/tls.ts";
import { day, keepLog, listen, loopback, makePki, minute, observe, shiftedClock, type TestPki } from "./kit.ts";

let pki: TestPki;
let other: TestPki;
let node: Credentials;
let folders = 0;

beforeAll(async () => {
  pki = await makePki();
  other = await makePki();
  node = await pki.node("node");
  await other.node("node");
});
afterAll(async () => {
  await pki.remove();
  await other.remove();
});

/** A copy of a node's folder that a test may spoil. */
async function copyOf(from: string): Promise<string> {
  const folder = join(pki.directory, `copy-${folders++}`);
  await mkdir(folder);
  for (const file of ["ca.pem", "cert.pem", "key.pem"]) await copyFile(join(from, file), join(folder, file));
  return folder;
}

describe("loading", () => {
  test("gives name, fingerprint and expiry, and no warning for a private key file", async () => {
    expect(node).toMatchObject({ name: "node", warnings: [] });
    expect(node.fingerprint).toMatch(/^([0-9A-F]{2}:){31}[0-9A-F]{2}$/);
    expect(Math.round((node.expiresAt - Date.now()) / day)).toBe(730);
  });

  test("a key others can read is a warning", async () => {
    const folder = await copyOf(node.directory);
    await chmod(join(folder, "key.pem"), 0o640);
    expect((await loadCredentials(folder)).warnings).toEqual([expect.stringContaining("chmod 600")]);
  });

  test.each(["ca.pem", "cert.pem", "key.pem"])("%s: missing, empty, cut, or something else", async (file) => {
    const folder = await copyOf(node.directory);
    const path = join(folder, file);
    const text = await readFile(path, "utf8");
    await rm(path);
    await expect(loadCredentials(folder)).rejects.toMatchObject({
      code: "certificate-missing",
      message: expect.stringContaining(path),
    });
    const swapped = file === "key.pem" ? "cert.pem" : "key.pem";
    for (const bad of ["", text.slice(0, text.length / 2), await readFile(join(node.directory, swapped), "utf8")]) {
      await writeFile(path, bad);
      await expect(loadCredentials(folder)).rejects.toMatchObject({
        code: "certificate-unusable",
        message: expect.stringContaining(path),
      });
    }
    await writeFile(path, "x".repeat(1024 * 1024 + 1));
    await expect(loadCredentials(folder)).rejects.toThrow(/too large/);
    await writeFile(path, text);
    await expect(loadCredentials(folder)).resolves.toMatchObject({ name: "node" });
  });

  test("a key of another certificate, a certificate of another authority", async () => {
    const folder = await copyOf(node.directory);
    await copyFile(join(other.directory, "node", "key.pem"), join(folder, "key.pem"));
    await expect(loadCredentials(folder)).rejects.toThrow(/is not the key of cert\.pem/);
    await copyFile(join(other.directory, "node", "cert.pem"), join(folder, "cert.pem"));
    await expect(loadCredentials(folder)).rejects.toThrow(/not issued by an authority in ca\.pem/);
  });

  test("outside its dates; two minutes before it was made is inside (C-91)", async () => {
    const load = (shift: number) => loadCredentials(node.directory, { clock: shiftedClock(shift) });
    await expect(load(-2 * minute)).resolves.toMatchObject({ name: "node" });
    await expect(load(-6 * minute)).rejects.toMatchObject({ code: "certificate-not-yet-valid" });
    await expect(load(731 * day)).rejects.toMatchObject({ code: "certificate-expired" });
  });
});

describe("watching", () => {
  /** A folder of its own under the authority, so that it can be renewed. */
  async function watched(name: string, days?: number) {
    const first = await pki.node(name, days === undefined ? {} : { days });
    const log = keepLog();
    const clock = createFakeClock({ now: Date.now() });
    const watch = await watchCredentials(first.directory, { clock, log });
    const renew = (): Promise<unknown> =>
      issueCertificate({
        directory: pki.directory,
        name,
        renew: true,
        newKey: true,
        clock: systemClock,
        random: systemRandom,
      });
    return { first, log, clock, watch, renew };
  }

  test("a pair renewed on disk is used within ten seconds, a half or broken one is not (C-89)", async () => {
    const { first, log, clock, watch, renew } = await watched("renewed");
    const listener = await listen({ credentials: watch });
    const connect = () => connectTls({ host: loopback, port: listener.port, credentials: node, clock: systemClock });
    const running = observe(await connect());
    const far = observe(await listener.nextLink());
    const path = (file: string): string => join(first.directory, file);
    const keep = await copyOf(first.directory);
    await renew();
    const fresh = await copyOf(first.directory);

    // The certificate first, its key later: what is between the two is not used, and said once.
    await copyFile(join(keep, "key.pem"), path("key.pem"));
    await copyFile(join(fresh, "cert.pem"), path("cert.pem"));
    await watch.check();
    await watch.check();
    expect(watch.current.fingerprint).toBe(first.fingerprint);
    expect(log.at("warn")).toEqual([expect.stringMatching(/not used, the old ones stay.*is not the key/)]);
    await writeFile(path("cert.pem"), "-----BEGIN CERTIFICATE-----\nbroken\n-----END CERTIFICATE-----\n");
    await watch.check();
    expect(log.at("warn")).toHaveLength(2);
    expect((await connect()).peer.fingerprint).toBe(first.fingerprint);

    await copyFile(join(fresh, "cert.pem"), path("cert.pem"));
    await copyFile(join(fresh, "key.pem"), path("key.pem"));
    clock.advance(10_000);
    await watch.check();
    expect(watch.current.fingerprint).not.toBe(first.fingerprint);
    expect(log.at("info")).toEqual(["certificate renewed: new connections use it"]);
    const later = await connect();
    expect(later.peer.fingerprint).toBe(watch.current.fingerprint);

    // The connection made before goes on.
    running.link.send({ type: "bye" });
    await far.received(1);
    expect(running.ends).toEqual([]);
    watch.close();
    await listener.close();
    await Promise.all([running.link.close(), later.close(), ...listener.links.map((link) => link.close())]);
  });

  test("files that did not change are not read again; a closed watch looks no more", async () => {
    const { first, clock, watch, renew } = await watched("quiet");
    const before = watch.current;
    await watch.check();
    expect(watch.current).toBe(before);
    watch.close();
    expect(clock.waiting).toBe(0);
    await renew();
    await watch.check();
    expect(watch.current.fingerprint).toBe(first.fingerprint);
  });

  test("expiry is said from 30 days before, once a day", async () => {
    const { clock, log, watch } = await watched("short", 29);
    expect(log.at("warn")).toEqual([expect.stringContaining('"short" expires in 29 days')]);
    clock.advance(day - 10_000);
    await watch.check();
    expect(log.at("warn")).toHaveLength(1);
    clock.advance(20_000);
    await watch.check();
    expect(log.at("warn")).toHaveLength(2);
    watch.close();
  });

  test("starts only from files that are good", async () => {
    const folder = await copyOf(node.directory);
    await rm(join(folder, "key.pem"));
    const clock = createFakeClock({ now: Date.now() });
    await expect(watchCredentials(folder, { clock, log: silentLogger })).rejects.toMatchObject({
      code: "certificate-missing",
    });
    expect(clock.waiting).toBe(0);
  });
});
