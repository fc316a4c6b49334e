// A set of listeners. An error in one of them does not keep the others from being notified.

export class Listeners {
  #all = new Set();

  /** Adds a listener. Returns a function that removes it. */
  add(listener) {
    this.#all.add(listener);
    return () => this.#all.delete(listener);
  }

  notify(value) {
    for (const listener of this.#all) {
      try {
        listener(value);
      } catch (error) {
        console.error(error);
      }
    }
  }
}
