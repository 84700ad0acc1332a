/** What happens to a tracked image, step by step: crashes are tried at every operation of it. */
import { half } from "./journal-ends.ts";
import type { Play } from "./journal-ends.ts";
import { blockBytes, regionBytes } from "./journal-world.ts";
import { TrackedWorld } from "./tracked-world.ts";

export type TrackedLife = (tracked: TrackedWorld) => Promise<void>;

const at = (region: number, block = 0): number => region * regionBytes + block * blockBytes;

/** First copy, deltas while the guest writes and zeros, a cut that is given up, one whose answer is lost, a stop and a start. */
async function cycles(tracked: TrackedWorld): Promise<void> {
  const { world } = tracked;
  world.doing = "make";
  await tracked.open();
  await tracked.write(at(0), 3);
  await tracked.write(at(3, 7) + 512, 2);
  await tracked.flush();
  world.doing = "first copy";
  await tracked.cycle({ meanwhile: [() => tracked.write(at(0), 2), () => tracked.write(at(1, 5))] });
  world.doing = "guest";
  await tracked.write(at(3, 7), 2, true);
  await tracked.zero(at(0), 2 * blockBytes);
  await tracked.write(at(4, 1));
  world.doing = "flush";
  await tracked.flush();
  await tracked.write(at(4, 2));
  world.doing = "delta";
  await tracked.cycle({
    byLane: true,
    meanwhile: [
      () => tracked.write(at(4, 1), 1, true),
      () => tracked.zero(at(3, 7), 4_096),
      () => tracked.write(at(5)),
    ],
  });
  world.doing = "cut that is given up";
  await tracked.write(at(6), 2);
  await tracked.cycle({ link: "broken", meanwhile: [() => tracked.write(at(6))] });
  await tracked.write(at(1, 6));
  world.doing = "answer that is lost";
  await tracked.cycle({ link: "lost", meanwhile: [() => tracked.zero(at(6), 512)] });
  await tracked.write(at(2, 2), 2, true);
  world.doing = "delta behind it";
  await tracked.cycle();
  await tracked.write(at(2, 2));
  world.doing = "close";
  await tracked.close();
  world.doing = "open again";
  await tracked.openAndCheck();
  await tracked.write(at(7, 1));
  world.doing = "last delta";
  await tracked.cycle();
  await tracked.write(at(7, 1));
}

/** Processes that end and losses of power between commit and answer, with writes that were not flushed. */
async function broken(tracked: TrackedWorld): Promise<void> {
  const { world } = tracked;
  world.doing = "make";
  await tracked.open();
  await tracked.write(at(1), 2);
  await tracked.cycle();
  await tracked.write(at(1, 1));
  await tracked.write(at(2, 2));
  world.doing = "answer that is lost";
  await tracked.cycle({ link: "lost" });
  await tracked.write(at(3, 3));
  world.doing = "killed";
  tracked.crash();
  await tracked.openAndCheck();
  await tracked.write(at(2, 2));
  world.doing = "delta after a kill";
  await tracked.cycle();
  await tracked.write(at(4, 4));
  await tracked.zero(at(1), 4_096);
  world.doing = "power lost";
  tracked.crash(half(11));
  await tracked.openAndCheck();
  await tracked.write(at(5, 4));
  world.doing = "delta after a loss of power";
  await tracked.cycle();
  await tracked.write(at(5, 4));
  await tracked.flush();
}

export const trackedLives: Readonly<Record<string, TrackedLife>> = { cycles, broken };

export function playTracked(life: TrackedLife): Play {
  return (world) => {
    const tracked = new TrackedWorld(world);
    return {
      live: () => life(tracked),
      crash: (survives) => {
        tracked.crash(survives);
      },
      lookAround: (mayScan) => tracked.lookAround(mayScan),
    };
  };
}
