/** A process or a file some of whose methods are others. */
export function overriding<T extends object>(object: T, methods: Partial<T>): T {
  return new Proxy(object, {
    get(target, key) {
      const other: unknown = Reflect.get(methods, key);
      if (other !== undefined) return other;
      const value: unknown = Reflect.get(target, key, target);
      return typeof value === "function" ? (value as (...args: unknown[]) => unknown).bind(target) : value;
    },
  });
}
