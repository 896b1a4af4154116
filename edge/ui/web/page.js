// What all parts of the page share: words, the pulse that keeps every tab up to date, and the list of conversations.
(() => {
  const language = (navigator.languages || [navigator.language])
    .map((name) => name.slice(0, 2).toLowerCase())
    .find((name) => window.edgeWords[name]) || "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  const words = window.edgeWords[language];
  const parts = {}, listeners = [];
  const edge = (window.edge = { parts, last: null, chips: [] });

  edge.say = (key, ...values) => values.reduce((text, value, i) => text.replace(`{${i}}`, value), words[key] ?? key);
  edge.on = (listener) => { listeners.push(listener); if (edge.last) listener(edge.last); };
  edge.language = language;
  edge.server = () => parts.rail.server;

  // make("button", {class: "x", onclick: f}, "text", child…)
  edge.make = (name, attributes = {}, ...children) => {
    const svg = ["svg", "rect", "path", "line", "polyline", "text", "title", "circle"].includes(name);
    const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    if (name === "button") made.type = "button";  // else one in a form would send it
    for (const [key, value] of Object.entries(attributes)) {
      if (value === undefined || value === null || value === false) continue;
      if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
      else made.setAttribute(key, value === true ? "" : value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
    return made;
  };
  edge.icon = (path) => edge.make("svg", { viewBox: "0 0 24 24", class: "icon", "aria-hidden": "true" },
    edge.make("path", { d: path }));
  edge.icons = {
    plus: "M12 5v14M5 12h14", list: "M4 6h16M4 12h16M4 18h10", side: "M4 6h16M4 12h9M4 18h12M18 12h2",
    more: "M5 12h.01M12 12h.01M19 12h.01", clip: "M21 11l-9 9a5 5 0 0 1-7-7l9-9a3.4 3.4 0 0 1 5 5l-9 9a1.7 1.7 0 0 1-2.4-2.4l8-8",
    close: "M6 6l12 12M18 6L6 18", compare: "M4 5h7v14H4zM13 5h7v14h-7z", chip: "M7 7h10v10H7zM10 3v4M14 3v4M10 17v4M14 17v4M3 10h4M3 14h4M17 10h4M17 14h4",
  };
  edge.bytes = (count) => count >= 1e9 ? `${(count / 1e9).toFixed(1)} GB` : `${Math.round(count / 1e6)} MB`;

  // What stands for < and & in a conversation, so that Markdown does not obey them, is not what was written.
  const written = (text) => String(text).replaceAll("&#x0003c;", "<").replaceAll("&#x00026;", "&");
  if (navigator.clipboard) {
    const write = navigator.clipboard.writeText.bind(navigator.clipboard);
    navigator.clipboard.writeText = (text) => write(written(text));
  }

  // Draw anew only what has changed, and leave the keyboard where it was.
  edge.draw = (element, key, children) => {
    if (element.edgeKey === key) return;
    element.edgeKey = key;
    const focused = document.activeElement && element.contains(document.activeElement)
      ? document.activeElement.dataset.key : null;
    element.replaceChildren(...children());
    if (focused) element.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  };

  edge.view = (name) => {
    const before = document.body.dataset.edgeView;
    if (before === name) return;
    document.body.dataset.edgeView = name;
    if (name === "compare") parts.rail.trigger("expand");
    else if (before === "compare") parts.rail.trigger("collapse");
    tell();
  };
  const narrow = window.matchMedia("(max-width: 900px)");
  edge.pane = (name, open) => {
    const shown = document.body.classList.toggle(`edge-${name}-open`, open);
    if (shown && narrow.matches) document.body.classList.remove(`edge-${name === "rail" ? "side" : "rail"}-open`);
    tell();
    return shown;
  };
  edge.isOpen = (name) => document.body.classList.contains(`edge-${name}-open`);
  const fit = () => { for (const name of ["rail", "side"]) edge.pane(name, !narrow.matches); };

  const tell = () => { if (edge.last) for (const listener of listeners) listener(edge.last); };
  edge.field = () => document.querySelector("#edge-field textarea");

  let asking = false, again = false, words_ = "", born = null;
  edge.ask = async () => {
    if (asking) again = true;  // what is on its way may be older than what was just done
    if (asking || !parts.rail) return;
    asking = true;
    const value = parts.rail.props.value || {};
    try {
      edge.last = await edge.server().pulse({ words: words_, open: value.open, language });
      edge.lost = false;
      if (born && born !== edge.last.born) {  // the program was started again, and knows this tab no more
        sessionStorage.setItem("edge-draft", edge.field()?.value || "");
        return location.reload();
      }
      born = edge.last.born;
      const open = edge.last.open, now = parts.rail.props.value || {};
      if (now.open && open.id === now.open && now.open === value.open && !now.following && !value.following
          && open.revision !== null && (open.revision > now.revision || open.busy))
        parts.rail.trigger("input");
    } catch (fault) {
      edge.lost = true;
    }
    asking = false;
    document.body.classList.toggle("edge-lost", edge.lost);
    if (again) { again = false; return edge.ask(); }
    if (!edge.last) return;
    const first = edge.last.host.stage !== "ready";
    if (first) edge.view("first");
    if (["cost", "export", "load"].includes(edge.last.host.stage)) edge.choosing = false;
    const shown = (parts.rail.props.value || {}).revision !== null;  // the conversation has come
    if (!first && shown && !edge.choosing && (document.body.dataset.edgeView ?? "first") === "first") {
      edge.view("chat");
      const field = edge.field(), draft = sessionStorage.getItem("edge-draft");
      if (field && draft) { field.value = draft; field.dispatchEvent(new Event("input")); sessionStorage.removeItem("edge-draft"); }
      field?.focus();
    }
    tell();
  };
  edge.search = (text) => { words_ = text; return edge.ask(); };
  edge.act = async (wanted) => {
    const done = await edge.server().act({ ...wanted, language });
    await edge.ask();
    return done;
  };
  const beat = async () => {
    try {
      await edge.ask();
    } finally {  // a part that cannot be drawn is told of in the console, and does not stop the others for good
      const busy = edge.last && (edge.last.machine.doing !== "idle" || edge.last.host.stage !== "ready");
      setTimeout(beat, document.hidden ? 5000 : busy ? 500 : 1500);
    }
  };

  edge.mount = (name, part) => {
    parts[name] = part;
    part.element.classList.add("edge-part");
    const place = edge.make("div", { class: `edge-${name}` });
    part.element.append(place);
    edge[`mount_${name}`]?.(place, part);
    if (name === "rail") {
      part.watch("value", () => {
        const { open } = part.props.value || {};
        const url = new URL(location.href);
        open ? url.searchParams.set("c", open) : url.searchParams.delete("c");
        if (url.href !== location.href) history.replaceState(null, "", url);
        edge.ask();
      });
      fit();
      beat();
    }
  };
  // A folded call has a button of gradio's in a button of gradio's: one is enough, and says whether it is open.
  const mend = () => {
    for (const title of document.querySelectorAll("#edge-chat .title[role=button]")) {
      const arrow = title.querySelector("button");
      if (arrow && !arrow.inert) arrow.inert = true;
      const open = String(!!title.parentElement.querySelector(".content"));
      if (title.getAttribute("aria-expanded") !== open) title.setAttribute("aria-expanded", open);
    }
    for (const area of document.querySelectorAll("#edge-chat textarea")) {
      if (area.edgeSeen) continue;
      area.edgeSeen = true;
      if (!area.getAttribute("aria-label")) area.setAttribute("aria-label", edge.say("message"));
      const question = written(`\n\n${area.value}`.split("\n\n↳ **")[0].slice(2));  // without the files below it
      if (question === area.value) continue;
      area.value = question;
      area.dispatchEvent(new Event("input"));
    }
  };
  new MutationObserver(mend).observe(document.documentElement, { childList: true, subtree: true });
  narrow.addEventListener("change", fit);
  document.addEventListener("visibilitychange", () => { if (!document.hidden) edge.ask(); });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      const stop = document.querySelector("#edge-field .stop-button");
      if (narrow.matches && (edge.isOpen("rail") || edge.isOpen("side"))) fit();
      else if (stop) stop.click();
    }
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k") {
      event.preventDefault();
      edge.pane("rail", true);
      document.querySelector(".edge-rail input")?.focus();
    }
  });

  // The list of conversations
  const day = (seconds) => {
    const then = new Date(seconds * 1000).setHours(0, 0, 0, 0), now = new Date().setHours(0, 0, 0, 0);
    return then >= now ? "today" : then >= now - 864e5 ? "yesterday" : "earlier";
  };
  const download = ({ name, text }) => {
    const link = edge.make("a", { href: URL.createObjectURL(new Blob([text])), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  edge.mount_rail = (place, part) => {
    const { make, say, icon, icons } = edge;
    let menu = null, mode = "menu";  // the conversation whose menu is open, and what is in it
    const open = (id) => { edge.view("chat"); part.trigger("select", { id }); if (narrow.matches) fit(); };
    const fresh = () => { open(""); setTimeout(() => edge.field()?.focus(), 200); };
    const search = make("input", { type: "search", placeholder: say("search"), "aria-label": say("search"),
      oninput: () => edge.search(search.value) });
    const list = make("div", { class: "list" }), told = make("div", { class: "told", role: "status" });
    const compare = make("button", { class: "quiet", onclick: () => {
      edge.view(document.body.dataset.edgeView === "compare" ? "chat" : "compare"); if (narrow.matches) fit(); } });
    const model = make("button", { class: "quiet", onclick: () => edge.changeModel() }, icon(icons.chip), say("change model"));
    place.append(make("nav", { "aria-label": say("conversations") },
      make("div", { class: "brand" }, "glm4-edge"),
      make("button", { class: "new", onclick: fresh }, icon(icons.plus), say("new")),
      search, list), told, make("div", { class: "foot" }, compare, model));
    const act = async (wanted) => {
      const done = await edge.act(wanted);
      if (done.error) edge.toast(done.error);
      return done;
    };
    const close = () => { const key = `m${menu}`; menu = null; mode = "menu"; document.activeElement?.blur(); redraw(); list.querySelector(`[data-key="${key}"]`)?.focus(); };
    const inside = (entry) => {
      const { id, title } = entry;
      if (mode === "rename") {
        const name = make("input", { value: title, "aria-label": say("rename"), "data-key": "rename" });
        const done = async () => { const title = name.value; close(); await act({ do: "rename", id, title }); };
        return [make("form", { onsubmit: (event) => { event.preventDefault(); done(); } }, name,
          make("button", { type: "submit" }, say("rename")))];
      }
      if (mode === "delete") {
        const sure = make("button", { class: "bad", onclick: async () => {
          menu = null; mode = "menu";
          if ((part.props.value || {}).open === id) open("");
          await act({ do: "delete", id });
        } }, say("delete"));
        setTimeout(() => sure.focus());
        return [make("p", {}, say("delete sure", title)), sure, make("button", { onclick: close }, say("cancel"))];
      }
      const item = (key, action) => make("button", { "data-key": key, onclick: action }, say(key));
      const save = (kind) => async () => { const done = await act({ do: kind, id }); if (done.text) download(done); close(); };
      const rename = item("rename", () => { mode = "rename"; redraw(); const name = list.querySelector("input"); name.focus(); name.select(); });
      setTimeout(() => rename.focus());
      return [rename, item("save as markdown", save("markdown")), item("save as json", save("json")),
        item("delete", () => { mode = "delete"; redraw(); })];
    };
    const row = (entry) => {
      const title = entry.title || say("untitled"), here = entry.id === (part.props.value || {}).open;
      const line = make("div", { class: `row${here ? " here" : ""}` },
        make("button", { class: "title", "data-key": entry.id, "aria-current": here ? "true" : null, onclick: () => open(entry.id) },
          make("span", {}, title), entry.busy && make("span", { class: "busy", role: "img", "aria-label": say("answering") })),
        make("button", { class: "more", "data-key": `m${entry.id}`, "aria-label": say("more", title), "aria-expanded": String(menu === entry.id),
          onclick: () => { if (menu === entry.id) return close(); menu = entry.id; mode = "menu"; redraw(); } }, icon(icons.more)));
      const whole = make("li", {}, line);
      if (menu === entry.id) whole.append(make("div", { class: "menu", onkeydown: (event) => {
        const items = [...event.currentTarget.querySelectorAll("button")], at = items.indexOf(document.activeElement);
        if (event.key === "Escape") { event.stopPropagation(); close(); }
        if (event.key === "ArrowDown") items[(at + 1) % items.length]?.focus();
        if (event.key === "ArrowUp") items[(at + items.length - 1) % items.length]?.focus();
      } }, ...inside(entry)));
      return whole;
    };
    const redraw = () => {
      if (!edge.last) return;
      if (mode === "rename" && document.activeElement?.tagName === "INPUT" && list.contains(document.activeElement)) return;  // what is typed there stays
      const entries = edge.last.entries, now = (part.props.value || {}).open;
      edge.draw(list, JSON.stringify([entries.map((entry) => [entry.id, entry.title, entry.busy, day(entry.changed)]), now, menu, mode]), () => {
        if (!entries.length) return [make("p", { class: "none" }, say(search.value ? "not found" : "none"))];
        return ["today", "yesterday", "earlier"].flatMap((when) => {
          const rows = entries.filter((entry) => day(entry.changed) === when).map(row);
          return rows.length ? [make("h2", {}, say(when)), make("ul", {}, ...rows)] : [];
        });
      });
      edge.draw(told, JSON.stringify(edge.last.remarks), () => edge.last.remarks.map((line) => make("p", {}, line)));
      const comparing = document.body.dataset.edgeView === "compare";
      edge.draw(compare, String(comparing), () => [icon(icons.compare), say(comparing ? "chat" : "compare")]);
    };
    edge.on(redraw);
  };
})();
