/** One bit of a VHDX replica is not what it was, here and there. Each bit: corruption.long.ts. */
import { vhdxCorruptionTests } from "./vhdx-corruption.ts";

vhdxCorruptionTests(7);
