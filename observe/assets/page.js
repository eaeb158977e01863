// Replaces parts of the page as the server sends them. The page is complete without it.
"use strict";

(() => {
  const address = document.body.dataset.events;
  if (!address || !window.EventSource) return;

  const connection = document.getElementById("connection");
  const waiting = new Map(); // id -> html, while text within the part is selected
  const shown = new Map(); // id -> html, as it was sent
  const focusable = "a, button, input, summary, [tabindex]";

  function isSelected(part) {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && selection.containsNode(part, true);
  }

  function replace(id, html) {
    const part = document.getElementById(id);
    if (!part || shown.get(id) === html) return;
    if (isSelected(part)) {
      waiting.set(id, html);
      return;
    }
    waiting.delete(id);
    shown.set(id, html);

    const open = new Map([...part.querySelectorAll("details[id]")].map((details) => [details.id, details.open]));
    const scrolled = [...part.querySelectorAll("[id]")]
      .filter((element) => element.scrollTop || element.scrollLeft)
      .map((element) => [element.id, element.scrollTop, element.scrollLeft]);
    const active = part.contains(document.activeElement) ? document.activeElement : null;
    const place = active ? [...part.querySelectorAll(focusable)].indexOf(active) : -1;

    part.innerHTML = html;

    for (const [id, isOpen] of open) {
      const details = document.getElementById(id);
      if (details) details.open = isOpen;
    }
    for (const [id, top, left] of scrolled) {
      const element = document.getElementById(id);
      if (element) element.scrollTo(left, top);
    }
    if (active) {
      const again = (active.id && document.getElementById(active.id)) || part.querySelectorAll(focusable)[place];
      if (again) again.focus({ preventScroll: true });
    }
    const titled = part.querySelector("[data-title]");
    if (titled) document.title = titled.dataset.title;
  }

  function say(text) {
    if (connection.textContent !== text) connection.textContent = text;
  }

  function connect() {
    const source = new EventSource(address);
    source.addEventListener("open", () => say(""));
    source.addEventListener("fragment", (event) => {
      const { id, html } = JSON.parse(event.data);
      replace(id, html);
    });
    source.addEventListener("error", () => {
      const hasEnded = document.querySelector("[data-ended]");
      say(hasEnded ? "the run has ended, and its program is gone" : "connection lost, trying again");
      // The browser tries again by itself, unless the answer was no stream of events.
      if (source.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
    });
  }

  document.addEventListener("selectionchange", () => {
    for (const [id, html] of [...waiting]) replace(id, html);
  });
  connect();
})();
