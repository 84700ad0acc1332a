/** A crash, and a failure, at every operation of every life of a tracked image, each in one of the ways; all of them: tracked-crash.long.ts. */
import { trackedCrashTests } from "./tracked-crash-tests.ts";

trackedCrashTests((at, way, of) => at % of === way);
