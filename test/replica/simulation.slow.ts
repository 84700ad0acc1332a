/** Two thousand lives, or REPLICATE_SIM_COUNT. */
import { simulationTests } from "./simulation-tests.ts";

simulationTests(2_000);
