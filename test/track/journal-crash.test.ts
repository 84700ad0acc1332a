/** A crash, and a failure, at every operation of every life, each in one of the ways; all of them: journal-crash.long.ts. */
import { journalCrashTests } from "./journal-crash-tests.ts";

journalCrashTests((at, way, of) => at % of === way);
