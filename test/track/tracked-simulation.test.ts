/** `npm run sim -- --tracked --seed N --count M --steps S` runs others; tracked-simulation.slow.ts many. */
import { trackedSimulationTests } from "./tracked-simulation-tests.ts";

trackedSimulationTests(100);
