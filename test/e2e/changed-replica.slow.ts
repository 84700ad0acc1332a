/** C-88, a replica that a machine ran on while its source went on: from the command line, with tools of others writing to it. */
import { chmodSync, copyFileSync } from "node:fs";
import { join } from "node:path";
import { beforeAll, describe, expect, test, type TestContext } from "vitest";
import { makeNoise, MIB, waitForLog, writeAt } from "./content.ts";
import {
  type CliResult,
  cmpFiles,
  fsck,
  makeExt4,
  makePki,
  needTools,
  type Pki,
  replicaPath,
  replicate,
  runTool,
  send,
  startReceiver,
  suiteScope,
  tempDir,
} from "./kit.ts";

const suite = suiteScope();
let pki: Pki;

beforeAll(async () => {
  pki = await makePki(suite, join(tempDir(suite), "pki"));
});

const kinds = {
  raw: {
    tools: ["mke2fs", "debugfs", "e2fsck"],
    fill: (image: string) => makeExt4(image, 64, join(import.meta.dirname, "../../src")),
    change: (replica: string) =>
      runTool("debugfs", ["-w", "-R", `write ${join(import.meta.dirname, "kit.ts")} theirs`, replica]),
  },
  vhdx: {
    tools: ["qemu-io", "qemu-img"],
    fill: (image: string) => makeNoise(image, 64 * MIB, 3),
    change: (replica: string) => runTool("qemu-io", ["-f", "vhdx", "-c", "write -P 0x77 20M 128k", replica]),
  },
} as const;

for (const format of ["raw", "vhdx"] as const) {
  describe(`a ${format} replica`, () => {
    const { tools, fill, change } = kinds[format];

    /** The replica as a raw image, by a tool that is not ours. */
    function copyOut(replica: string, out: string): void {
      if (format === "raw") copyFileSync(replica, out);
      else expect(runTool("qemu-img", ["convert", "-f", "vhdx", "-O", "raw", replica, out]).code).toBe(0);
    }

    test("is not overwritten, can be kept as a point, and follows its source again (C-88)", async (t) => {
      needTools(t, ...tools);
      const dir = tempDir(t);
      const [image, theirs, out] = [join(dir, "disk.raw"), join(dir, "theirs.raw"), join(dir, "out.raw")];
      fill(image);
      const storeDir = join(dir, "store");
      const receiver = await startReceiver(t, { storeDir, tls: pki.recv, args: ["--format", format] });
      const sending = { image, port: receiver.port, disk: "vm", tls: pki.send };
      const onStore = (scope: TestContext, ...[verb = "", ...args]: string[]): Promise<CliResult> =>
        replicate(scope, [verb, "--store", storeDir, ...args, "--json"]);
      expect((await send(t, sending)).done).toMatchObject({ point: 1 });

      const replica = replicaPath(storeDir, "vm", format);
      chmodSync(replica, 0o600);
      expect(change(replica).code).toBe(0);
      copyOut(replica, theirs);
      expect(cmpFiles(image, theirs)).not.toBeUndefined();
      writeAt(image, [[40 * MIB, Buffer.alloc(MIB, 7)]]);

      const refused = await send(t, sending);
      expect([refused.code, refused.error?.code]).toEqual([4, "replica-changed"]);
      expect(refused.error?.message).toMatch(/since point 1 \(cycle .*repair --keep-changes/);
      await waitForLog(receiver.process, { code: "replica-changed", disk: "vm" });
      copyOut(replica, out);
      expect(cmpFiles(theirs, out)).toBeUndefined();
      expect((await onStore(t, "disks")).lines).toMatchObject([{ disk: "vm", state: "changed" }]);

      const kept = await onStore(t, "repair", "vm", "--keep-changes", "--label", "ran here");
      expect([kept.code, kept.lines.at(-1)]).toMatchObject([3, { event: "done", disk: "vm", kept: 2 }]);
      expect((await onStore(t, "disks")).lines).toMatchObject([{ disk: "vm", state: "idle", points: 2 }]);

      const done = await send(t, sending);
      expect([done.code, done.done?.point]).toEqual([0, 3]);
      for (const [point, expected] of [
        ["vm@ran here", theirs],
        ["vm", image],
      ] as const) {
        expect((await onStore(t, "restore", point, out, "--force")).code).toBe(0);
        expect(cmpFiles(expected, out)).toBeUndefined();
        if (format === "raw") expect(fsck(out).clean).toBe(true);
      }
      expect((await onStore(t, "points", "vm")).lines).toMatchObject([
        { point: 1 },
        { point: 2, label: "ran here", consistency: "none", held: { owner: "repair" } },
        { point: 3 },
      ]);
      expect((await onStore(t, "release", "vm@2", "--owner", "repair")).code).toBe(0);
    });
  });
}
