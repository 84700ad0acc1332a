/** What has a `close`, for `await using`: closed however the block is left, so that nothing open keeps the process. */
export function disposable<T extends { close(): Promise<void> }>(resource: T): T & AsyncDisposable {
  return Object.assign(resource, { [Symbol.asyncDispose]: () => resource.close() });
}
