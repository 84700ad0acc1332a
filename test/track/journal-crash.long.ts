/** A crash, and a failure, at every operation of every life, in every way. */
import { journalCrashTests } from "./journal-crash-tests.ts";

journalCrashTests(() => true);
