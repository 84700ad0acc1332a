/** Two thousand lives, or REPLICATE_SIM_COUNT. */
import { trackedSimulationTests } from "./tracked-simulation-tests.ts";

trackedSimulationTests(2_000);
