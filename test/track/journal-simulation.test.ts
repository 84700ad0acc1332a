/** `npm run sim -- --journal --seed N --count M --steps S` runs others; journal-simulation.slow.ts many. */
import { journalSimulationTests } from "./journal-simulation-tests.ts";

journalSimulationTests(300);
