/** `npm run sim -- --seed N --count M --steps S` runs others; simulation.slow.ts many. */
import { simulationTests } from "./simulation-tests.ts";

simulationTests(60);
