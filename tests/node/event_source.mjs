// Records what an EventSource delivers. Runs in a browser, and in Node with the package eventsource.

// Returns the events, each as [type, data, lastEventId], and the states in which the error events came: 0 if the
// EventSource reconnects, 2 if it gives up. With `once`, the EventSource is closed at the first error.
export const record = (EventSource, url, once) =>
  new Promise((resolve) => {
    const events = [];
    const states = [];
    const source = new EventSource(url);
    source.onmessage = ({ type, data, lastEventId }) => events.push([type, data, lastEventId]);
    source.onerror = () => {
      states.push(source.readyState);
      if (once || source.readyState === 2) {
        source.close();
        resolve({ events, states });
      }
    };
  });

// Records from all URLs, from six at the same time: a browser allows six connections to a host.
export const recordAll = async (EventSource, urls, once) => {
  const records = [];
  const waiting = [...urls.entries()];
  const lane = async () => {
    while (waiting.length) {
      const [index, url] = waiting.shift();
      records[index] = await record(EventSource, url, once);
    }
  };
  await Promise.all(Array.from({ length: 6 }, lane));
  return records;
};
