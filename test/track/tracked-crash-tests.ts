/** Tests of a crash, and of a failure of the tracker's own files, at the operations of each life of a tracked image. */
import { crashTests, type Chosen } from "./journal-crash-tests.ts";
import { imagePath } from "./journal-world.ts";
import { playTracked, trackedLives } from "./tracked-lives.ts";

export function trackedCrashTests(chosen: Chosen): void {
  for (const [name, life] of Object.entries(trackedLives)) {
    const play = playTracked(life);
    crashTests(`a tracked image's life: ${name}`, play, { chosen, mayFail: ({ path }) => path !== imagePath });
  }
}
