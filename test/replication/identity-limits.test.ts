/** What one identity may take of a receiver, and that others do not notice. */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterEach, describe, expect, test } from "vitest";
import { ReplicationError } from "../../src/base/errors.ts";
import { limits } from "../../src/base/limits.ts";
import { MIB } from "../../src/base/units.ts";
import { createMemoryImage } from "../../src/image/memory.ts";
import { type IdentityLimits, identityLimitsOf } from "../../src/replication/identity-limits.ts";
import type { Authorize } from "../../src/replication/receiver.ts";
import { createLinkedPair } from "../../src/testing/linked-pair.ts";
import { randomBytes } from "../random.ts";
import { EndByHand, helloMessage, turns } from "./by-hand.ts";
import { expectEqual, watchRejections } from "./checks.ts";
import { hastyClock, PairKit } from "./pair-kit.ts";

let kit: PairKit;
const rejections = watchRejections();

afterEach(async () => {
  expect(await kit.close(), "every slot is back").toBe(true);
  expect(await rejections.take()).toEqual([]);
});

async function start(perIdentity: Partial<IdentityLimits>, authorize?: Authorize): Promise<void> {
  kit = await PairKit.create({ receiver: { perIdentity, ...(authorize === undefined ? {} : { authorize }) } });
}

/** Sends an image of this size with little in it; each disk from an instance of its own. */
async function send(identity: string, disk: string, sizeBytes: number) {
  const image = createMemoryImage(sizeBytes);
  await image.write(randomBytes(5_000), 0);
  const source = { reader: image, name: disk, identity: disk };
  return { image, report: await kit.send(image, { identity, disk, instance: `${identity}.${disk}`, source }) };
}

describe("disks", () => {
  test("one identity owns so many and no more; what it has goes on, and others have their own", async () => {
    await start({ disks: 2 });
    await send("web", "web-1", MIB);
    await send("web", "web-2", MIB);
    const refused = send("web", "web-3", MIB);
    await expect(refused).rejects.toMatchObject({
      code: "limit-exceeded",
      action: "never",
      remote: true,
      message: expect.stringContaining("web owns 2 disks") as string,
      details: { identity: "web", disks: 2, disksMax: 2 },
    });
    await kit.idle();
    expect(await kit.store.disks()).toEqual(["web-1", "web-2"]);
    const { image, report } = await send("web", "web-1", MIB);
    expect(report).toMatchObject({ point: 2 });
    await expectEqual(kit, image, "web-1");
    await send("mail", "mail-1", MIB);
  });

  test("what is left for one goes to one of several that come at once", async () => {
    await start({ disks: 3 });
    const all = await Promise.allSettled(Array.from({ length: 6 }, (_, index) => send("web", `web-${index}`, MIB)));
    expect(all.filter(({ status }) => status === "fulfilled")).toHaveLength(3);
    for (const outcome of all) {
      if (outcome.status === "rejected") expect(outcome.reason).toMatchObject({ code: "limit-exceeded" });
    }
    await kit.idle();
    expect(await kit.store.disks()).toHaveLength(3);
  });

  test("a claim of a session that failed is given back", async () => {
    await start({ disks: 1 });
    const { create } = kit.store;
    Object.assign(kit.store, { create: () => Promise.reject(new ReplicationError("no-space", "full")) });
    await expect(send("web", "web-1", MIB)).rejects.toMatchObject({ code: "no-space" });
    await kit.idle();
    Object.assign(kit.store, { create });
    await send("web", "web-2", MIB);
  });

  test("a disk whose record is damaged does not keep its owner, or others, from making disks", async () => {
    await start({ disks: 1 });
    await send("web", "web-1", MIB);
    await kit.idle();
    writeFileSync(join(kit.folder, "store/disks/web-1/disk.json"), "damaged");
    await send("mail", "mail-1", MIB);
  });
});

describe("bytes", () => {
  test("of all disks of an identity together, whatever is in them", async () => {
    await start({ diskBytes: 10 * MIB });
    await send("web", "web-1", 6 * MIB);
    await expect(send("web", "web-2", 4 * MIB + 512)).rejects.toMatchObject({
      code: "limit-exceeded",
      details: { identity: "web", sizeBytes: 4 * MIB + 512, otherBytes: 6 * MIB, bytesMax: 10 * MIB },
    });
    await kit.idle();
    expect(await kit.store.disks()).toEqual(["web-1"]);
    await send("web", "web-2", 4 * MIB);
    await send("mail", "mail-1", 10 * MIB);
  });

  test("a disk that grows counts with what it grows to; one that does not is let alone", async () => {
    await start({ diskBytes: 10 * MIB });
    await send("web", "web-1", 4 * MIB);
    await send("web", "web-2", 4 * MIB);
    await expect(send("web", "web-1", 6 * MIB + 512)).rejects.toMatchObject({ code: "limit-exceeded" });
    await kit.idle();
    expect((await kit.store.summary("web-1"))?.record.sizeBytes).toBe(4 * MIB);
    const { image } = await send("web", "web-1", 6 * MIB);
    await expectEqual(kit, image, "web-1");
    expect((await send("web", "web-2", 4 * MIB)).report).toMatchObject({ point: 2 });
  });

  test("a lowered limit takes nothing away", async () => {
    await start({ diskBytes: 0, disks: 0 });
    const geometry = { sizeBytes: MIB, blockBytes: 65_536, digestKind: "xxh64" } as const;
    await kit.store.create("web-1", { geometry, owner: "web", sectorBytes: 512 });
    expect((await send("web", "web-1", MIB)).report).toMatchObject({ point: 1 });
  });

  test("are those of the disk's owner, whoever writes to it", async () => {
    await start({ diskBytes: 2 * MIB });
    await send("web", "web-1", MIB);
    await kit.idle();
    await expect(send("admin", "web-1", 3 * MIB)).rejects.toMatchObject({ details: { identity: "web" } });
  });
});

function greet(identity: string, instance: string): EndByHand {
  const pair = createLinkedPair({ clock: hastyClock, client: { name: identity } });
  kit.receiver.accept(pair.server);
  const end = new EndByHand(pair.client);
  end.send(helloMessage(instance));
  return end;
}

/** `hello`, or the code of the refusal. */
async function answer(end: EndByHand): Promise<string> {
  const hello = await end.next("hello");
  return hello === undefined ? await end.end() : "hello";
}

describe("sessions", () => {
  test("so many of one identity at a time; another one's, and a free place, are there for the taking", async () => {
    await start({ sessions: 2 });
    const [first, second] = [greet("web", "a"), greet("web", "b")];
    expect([await answer(first), await answer(second)]).toEqual(["hello", "hello"]);
    const third = greet("web", "c");
    const refusal = await third.next("error");
    expect(refusal?.message).toMatchObject({
      code: "receiver-busy",
      message: expect.stringContaining("web has 2 sessions") as string,
      details: { identity: "web", sessions: 2, sessionsMax: 2 },
    });
    expect(await answer(greet("mail", "a"))).toBe("hello");
    first.send({ type: "bye" });
    while (kit.receiver.sessions > 2) await new Promise((resolve) => setImmediate(resolve));
    expect(await answer(greet("web", "c"))).toBe("hello");
  });

  test("a sender takes over from its dead session although there is no place; only one at a time", async () => {
    await start({ sessions: 1 });
    const ends = [greet("web", "a"), greet("web", "a"), greet("web", "a"), greet("web", "b")];
    expect(await Promise.all(ends.map(answer))).toEqual(["hello", "hello", "receiver-busy", "receiver-busy"]);
  });
});

test("links that say nothing: few are kept, the oldest makes room, and who talks is let alone", async () => {
  await start({});
  const talking = greet("web", "a");
  expect(await answer(talking)).toBe("hello");
  const silent = Array.from({ length: 1_000 }, () => {
    const pair = createLinkedPair({ clock: hastyClock, client: { name: "mail" } });
    kit.receiver.accept(pair.server);
    return new EndByHand(pair.client);
  });
  await turns(5);
  const open = silent.flatMap((end, nth) => (end.ended === undefined ? [nth] : []));
  expect(open).toEqual(
    Array.from({ length: limits.pendingHandshakesMax }, (_unused, nth) => nth + 1_000 - open.length),
  );
  const { image } = await send("web", "web-1", MIB);
  await expectEqual(kit, image, "web-1");
  expect(talking.ended).toBeUndefined();
  // Who says hello takes no place of those who do not; one that was there all the time may still do it.
  const late = silent.at(-1);
  late?.send(helloMessage("b"));
  expect(late && (await answer(late))).toBe("hello");
  for (let nth = 0; nth < limits.pendingHandshakesMax; nth++)
    expect(await answer(greet("web", `c${nth}`))).toBe("hello");
  expect(late?.ended).toBeUndefined();
});

test("a disk that another identity made in the same moment is not written to", async () => {
  let asked = 0;
  // Belongs to whoever made it.
  await start({}, (peer, disk, owner) => {
    asked++;
    if (owner === undefined || owner === peer.name) return undefined;
    return new ReplicationError("disk-owned", `disk ${disk} belongs to ${owner}`);
  });
  const geometry = { sizeBytes: MIB, blockBytes: 65_536, digestKind: "xxh64" } as const;
  const { summary } = kit.store;
  let looks = 0;
  Object.assign(kit.store, {
    async summary(name: string) {
      const found = await summary(name);
      // Made between the first look and what follows from it.
      if (looks++ === 0) await kit.store.create("vm", { geometry, owner: "mail", sectorBytes: 512 });
      return found;
    },
  });
  await expect(send("web", "vm", MIB)).rejects.toMatchObject({ code: "disk-owned" });
  expect(asked).toBe(2);
  await kit.idle();
  expect((await kit.store.summary("vm"))?.newest).toBeUndefined();
});

test("limits that are not given are those of the table", async () => {
  await start({});
  const { identitySessionsMax, identityDisksMax, identityDiskBytesMax } = limits;
  expect(identityLimitsOf()).toEqual({
    sessions: identitySessionsMax,
    disks: identityDisksMax,
    diskBytes: identityDiskBytesMax,
  });
  expect(identityLimitsOf({ disks: 3 })).toMatchObject({ disks: 3, sessions: identitySessionsMax });
  expect(() => identityLimitsOf({ sessions: -1 })).toThrow(/limit of an identity/);
  expect(() => identityLimitsOf({ disks: Number.NaN })).toThrow(/limit of an identity/);
  expect(identitySessionsMax).toBeLessThan(limits.sessionsMax);
  expect(identityDiskBytesMax).toBeGreaterThanOrEqual(limits.diskBytesMax);
});
