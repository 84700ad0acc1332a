/** Each operation of each life is the last one of its process, in each way, or fails once. */
import { crashTests } from "./crash-kit.ts";

crashTests({ chosen: () => true, whole: () => true, options: { twice: true } });
