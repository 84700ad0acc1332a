/** A crash, and a failure, at every operation of every life of a tracked image, in every way. */
import { trackedCrashTests } from "./tracked-crash-tests.ts";

trackedCrashTests(() => true);
