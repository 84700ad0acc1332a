import { describe, expect, test } from "vitest";
import { believe, type ImageNow, type JournalClaim } from "../../src/track/belief.ts";
import type { Fingerprint } from "../../src/track/fingerprint.ts";
import type { ScanReason } from "../../src/track/scan-reason.ts";

const heartbeatMillis = 1_700_000_000_000;
const millis = 1_000_000n;
const changedNanos = BigInt(heartbeatMillis - 60_000) * millis;
const image: Fingerprint = { sizeBytes: 4096, device: "8:1", inode: "12", changedNanos, dataWriteGuid: undefined };
const closed: JournalClaim = { mode: "power", closed: true, sizeBytes: 2048, image, bootId: "b1", heartbeatMillis };
const open: JournalClaim = { ...closed, closed: false };
const now: ImageNow = {
  kind: "file",
  sizeBytes: 2048,
  image,
  boot: { id: "b1", beganMillis: heartbeatMillis - 3_600_000 },
  nowMillis: heartbeatMillis + 30_000,
};
const rebooted: ImageNow = { ...now, boot: { id: "b2", beganMillis: heartbeatMillis + 20_000 } };

function changedAt(of: ImageNow, nanos: bigint): ImageNow {
  return { ...of, image: { ...of.image, changedNanos: nanos } };
}

function after(of: ImageNow, nanosBehindHeartbeat: bigint): ImageNow {
  return changedAt(of, BigInt(heartbeatMillis) * millis + nanosBehindHeartbeat);
}

const device = { kind: "device" } as const;
const second = 1_000n * millis;

const rows: readonly (readonly [
  name: string,
  journal: JournalClaim,
  now: ImageNow,
  is: ScanReason | "exact" | "audit",
])[] = [
  ["closed, nothing changed", closed, now, "exact"],
  ["closed, another boot", closed, rebooted, "exact"],
  ["closed, no boot is known", { ...closed, bootId: "" }, { ...now, boot: undefined }, "exact"],
  ["closed in mode process, another boot", { ...closed, mode: "process" }, rebooted, "exact"],
  ["closed, ctime one nanosecond later", closed, changedAt(now, changedNanos + 1n), "image-changed"],
  ["closed, ctime earlier", closed, changedAt(now, changedNanos - 1n), "image-changed"],
  ["closed, file of another size", closed, { ...now, image: { ...image, sizeBytes: 4097 } }, "image-changed"],
  ["closed, another DataWriteGuid", closed, { ...now, image: { ...image, dataWriteGuid: "g" } }, "image-changed"],
  ["closed, another inode", closed, { ...now, image: { ...image, inode: "13" } }, "other-image"],
  ["closed, another device", closed, { ...now, image: { ...image, device: "8:2" } }, "other-image"],
  ["closed, disk of another size", closed, { ...now, sizeBytes: 2049 }, "disk-size-differs"],
  ["closed, at the heartbeat", closed, { ...now, nowMillis: heartbeatMillis }, "exact"],
  ["closed, the clock went back", closed, { ...now, nowMillis: heartbeatMillis - 1 }, "clock-went-back"],
  ["closed device", closed, { ...now, ...device }, "audit"],
  ["closed device, its node made anew", closed, { ...changedAt(now, 0n), ...device }, "audit"],
  ["closed device of another size", closed, { ...now, ...device, image: { ...image, sizeBytes: 1 } }, "image-changed"],

  ["same boot, changed before the heartbeat", open, now, "exact"],
  ["same boot, changed 2 s behind it", open, after(now, 2n * second), "exact"],
  ["same boot, changed later", open, after(now, 2n * second + millis), "image-changed-later"],
  ["same boot, mode process", { ...open, mode: "process" }, after(now, second), "exact"],
  ["same boot, file of another size", open, { ...now, image: { ...image, sizeBytes: 9_999 } }, "exact"],
  ["same boot, another inode", open, { ...now, image: { ...image, inode: "13" } }, "other-image"],
  ["same boot, disk of another size", open, { ...now, sizeBytes: 1 }, "disk-size-differs"],
  ["same boot, the clock went back", open, { ...now, nowMillis: heartbeatMillis - 1 }, "clock-went-back"],
  ["not closed, the boot is not known now", open, { ...now, boot: undefined }, "boot-unknown"],
  ["not closed, the boot was not known then", { ...open, bootId: "" }, now, "boot-unknown"],
  ["device, same boot", open, { ...after(now, 9n * second), ...device }, "audit"],

  ["another boot, changed before the heartbeat", open, rebooted, "exact"],
  ["another boot, changed 12 s behind it", open, after(rebooted, 12n * second), "exact"],
  ["another boot, changed later", open, after(rebooted, 12n * second + millis), "image-changed-later"],
  [
    "another boot, changed since it began",
    open,
    after({ ...now, boot: { id: "b2", beganMillis: heartbeatMillis + 5_000 } }, 5n * second),
    "image-changed-later",
  ],
  ["another boot, mode process", { ...open, mode: "process" }, rebooted, "other-boot"],
  ["another boot, the clock went back", open, { ...rebooted, nowMillis: heartbeatMillis - 1 }, "clock-went-back"],
  ["device, another boot", open, { ...after(rebooted, 25n * second), ...device }, "audit"],
  ["device, another boot, mode process", { ...open, mode: "process" }, { ...rebooted, ...device }, "other-boot"],
];

describe("is a journal to be believed", () => {
  test.each(rows)("%s", (_name, journal, is, wanted) => {
    const belief = believe(journal, is);
    if (belief.kind === "exact") expect(belief.audit ? "audit" : "exact").toBe(wanted);
    else {
      expect(belief.reason).toBe(wanted);
      expect(belief.words).toMatch(/^(the|whether) /);
    }
  });
});
