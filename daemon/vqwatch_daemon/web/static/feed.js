// The way to the daemon: questions by fetch, news by server-sent events that are reopened when they end.

export async function ask(path, parameters = []) {
  const query = new URLSearchParams(parameters.filter(([, value]) => value !== null && value !== undefined)).toString();
  const answer = await fetch(`/api/${path}${query ? `?${query}` : ""}`);
  if (!answer.ok) throw new Error(`${answer.status} for ${path}`);
  return answer.json();
}

export const ofRun = (run, what) => `runs/${encodeURIComponent(run)}/${what}`;

/** Listens until told to listen for other runs; `opened` is called whenever contact begins (again). */
export class Feed {
  constructor(heard, opened) {
    this.heard = heard;
    this.opened = opened;
    this.lastHeard = 0;
    this.source = null;
    this.retry = null;
  }

  listen(runs) {
    this.runs = runs;
    clearTimeout(this.retry);
    this.source?.close();
    const query = new URLSearchParams(runs.map((run) => ["run", run]));
    const source = new EventSource(`/api/events?${query}`);
    this.source = source;
    source.addEventListener("open", () => this.opened());
    source.addEventListener("tick", (event) => {
      this.lastHeard = performance.now();
      this.heard(JSON.parse(event.data));
    });
    source.addEventListener("error", () => {
      if (source !== this.source) return;
      source.close();
      this.retry = setTimeout(() => this.listen(this.runs), 1500);
    });
  }

  /** Seconds since the daemon was last heard. */
  silence() {
    return this.lastHeard === 0 ? 0 : (performance.now() - this.lastHeard) / 1000;
  }
}
