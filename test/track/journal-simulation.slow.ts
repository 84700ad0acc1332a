/** Two thousand lives, or REPLICATE_SIM_COUNT. */
import { journalSimulationTests } from "./journal-simulation-tests.ts";

journalSimulationTests(2_000);
