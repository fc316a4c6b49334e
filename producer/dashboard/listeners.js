// Who wants to be told. One listener's fault is its own: the others are told all the same.

export class Listeners {
  #all = new Set();

  /** Adds one; the answer takes it away again. */
  add(listener) {
    this.#all.add(listener);
    return () => this.#all.delete(listener);
  }

  tell(value) {
    for (const listener of this.#all) {
      try {
        listener(value);
      } catch (error) {
        console.error(error);
      }
    }
  }
}
