/** What happens to a journal, step by step: crashes are tried at every operation of it. */
import { blockBytes, regionBytes, type World } from "./journal-world.ts";
import { half } from "./journal-ends.ts";

export type Life = (world: World) => Promise<void>;

const at = (region: number, block = 0): number => region * regionBytes + block * blockBytes;

/** Open, marks, cooling, ranges, heartbeats, cycles, checkpoint, close, open. */
async function whole(world: World): Promise<void> {
  world.doing = "make";
  await world.open();
  world.doing = "first cycle";
  await world.write(at(0), at(3, 7));
  await world.cycle();
  world.doing = "mark";
  await world.write(at(0), at(1, 5), at(1, 6));
  await world.write(at(0, 1));
  await world.write(at(0, 1) + 512, at(2, 63));
  world.doing = "cool";
  for (const region of [3, 4, 5, 6]) await world.write(at(region, region));
  await world.write(at(0, 2), at(1, 5));
  await world.writeRange(at(6, 60), 5 * blockBytes);
  world.doing = "range";
  await world.writeRange(at(7, 3) + 100, 3 * regionBytes, 40);
  world.doing = "heartbeat";
  await world.pass(11);
  world.doing = "cut";
  const second = await world.flip();
  await world.write(at(0, 2), at(9), at(0, 9));
  world.doing = "retire";
  await world.retire(second);
  await world.write(at(0, 2), at(9, 1), at(8, 2));
  world.doing = "cut that fails";
  const third = await world.flip();
  await world.write(at(2, 1), at(8, 2));
  world.mergeBack(third);
  await world.write(at(5, 1));
  world.doing = "checkpoint";
  await world.journal?.checkpoint();
  await world.write(at(5, 2), at(7, 7));
  world.doing = "acknowledged late";
  await world.retire(third);
  await world.write(at(6, 2));
  world.doing = "close";
  await world.close();
  world.doing = "open again";
  await world.open();
  await world.write(at(6, 2), at(1, 1));
  await world.cycle();
  await world.write(at(4, 4));
  world.doing = "close again";
  await world.close();
}

/** Processes that end, and losses of power, with cycles across them. */
async function broken(world: World): Promise<void> {
  world.doing = "make";
  await world.open();
  await world.write(at(1));
  await world.cycle();
  await world.write(at(1, 1), at(2, 2));
  const cut = await world.flip();
  await world.write(at(3, 3), at(1, 1));
  world.doing = "killed";
  world.crash();
  await world.openAndCheck();
  await world.write(at(4, 4), at(3, 3), at(5));
  world.doing = "acknowledged after a kill";
  if (world.journal?.pending === cut) await world.retire(cut);
  await world.write(at(1, 9), at(6, 6));
  world.doing = "power lost";
  world.crash(half(11));
  await world.openAndCheck();
  await world.write(at(1, 10), at(7, 7));
  await world.cycle();
  await world.write(at(1, 11), at(2, 7));
  await world.pass(3);
  world.doing = "power lost again";
  world.crash(() => false);
  await world.openAndCheck();
  world.doing = "cycle at the end";
  await world.write(at(1, 11), at(8, 7));
  await world.cycle();
  await world.close();
}

/** Logs that fill up, and new sizes. */
async function resized(world: World): Promise<void> {
  world.doing = "make";
  await world.open();
  await world.cycle();
  const before = world.sizeBytes;
  world.doing = "full log";
  for (let turn = 0; turn < 12; turn++) await world.write(at((turn * 3) % 10, turn), at((turn * 7) % 10, turn + 1));
  world.doing = "grow";
  await world.resize(before + 2 * regionBytes);
  await world.write(at(11), before - (before % 512) - 1024);
  world.doing = "cycle of a grown disk";
  await world.cycle();
  await world.write(at(11, 1), at(3, 3));
  world.doing = "shrink";
  await world.resize(6 * regionBytes + 512);
  await world.write(at(5, 9), at(6));
  world.doing = "grow again";
  await world.resize(8 * regionBytes);
  const cut = await world.flip();
  await world.write(at(7, 9));
  world.doing = "cycle of a disk that grew again";
  await world.retire(cut);
  await world.write(at(7, 10));
  await world.close();
}

export const lives: Readonly<Record<string, Life>> = { whole, broken, resized };
