// Whether the server answers. After a failure, /health is polled until it does.

import { isHealthy } from "./api.js";

const POLL_MS = 1000;

export class Connection {
  isUp = true;

  /** `onBack` is called when the server answers again. */
  constructor(onBack) {
    this.onBack = onBack;
  }

  /** Starts to poll, after a request was not answered. */
  async lose() {
    if (!this.isUp) return;
    this.isUp = false;
    do {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    } while (!(await isHealthy()));
    this.isUp = true;
    this.onBack();
  }
}
