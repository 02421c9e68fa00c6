"use strict";
// Everything works without this file. It adds what happens meanwhile, keys, copying, and the theme; and it makes no code of text.
const html = document.documentElement;
const store = { get: (k) => { try { return localStorage.getItem(k); } catch { return null; } }, set: (k, v) => { try { localStorage.setItem(k, v); } catch { /* private */ } } };
if (["light", "dark"].includes(store.get("durable-theme"))) html.dataset.theme = store.get("durable-theme");
const all = (what, from = document) => [...from.querySelectorAll(what)];

addEventListener("DOMContentLoaded", () => {
  for (const hidden of all("[data-theme], [data-copy], [data-hints]")) if (hidden !== html) hidden.hidden = false;
  theme(); chosen(); keys(); live();
  addEventListener("click", (event) => {
    const copy = event.target.closest?.("[data-copy]");
    if (copy) navigator.clipboard?.writeText(document.getElementById(copy.dataset.copy).textContent).then(() => { copy.textContent = "Copied"; setTimeout(() => { copy.textContent = "Copy"; }, 1500); }, () => { copy.textContent = "Not allowed"; });
    for (const menu of all("details.menu[open]")) if (!menu.contains(event.target)) menu.open = false;
  });
});

function theme() {
  for (const button of all("button[data-theme]")) button.addEventListener("click", () => {
    const dark = html.dataset.theme ? html.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    html.dataset.theme = dark ? "light" : "dark";
    store.set("durable-theme", html.dataset.theme);
  });
}

function chosen() {
  const bulk = document.querySelector("[data-bulk]");
  if (!bulk) return;
  const count = () => {
    const number = all("tbody input[name=id]:checked").length;
    bulk.hidden = number === 0;
    bulk.classList.add("sticky");
    bulk.querySelector("[data-chosen]").textContent = `${number} ${number === 1 ? "run" : "runs"} chosen`;
  };
  addEventListener("change", count);
  addEventListener("pageshow", count);
  count();
}

function keys() {
  const rows = () => all("table.runs:not(.owners) tbody tr, ol.tl li");
  let at = null;
  const move = (by) => {
    const found = rows();
    if (!found.length) return;
    const next = Math.max(0, Math.min(found.length - 1, (at ? found.indexOf(at) : -1) + by));
    at?.removeAttribute("aria-selected");
    at = found[next];
    if (at.matches("tr")) at.setAttribute("aria-selected", "true"); else at.querySelector("a").focus();
    at.scrollIntoView({ block: "nearest" });
  };
  addEventListener("keydown", (event) => {
    if (event.target.matches("input:not([type=checkbox]), textarea, select") || event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
    const box = at?.querySelector("input[name=id]");
    if (event.key === "/") document.getElementById("q")?.focus();
    else if (event.key === "j") move(1);
    else if (event.key === "k") move(-1);
    else if (event.key === "x" && box) { box.checked = !box.checked; dispatchEvent(new Event("change")); }
    else if (event.key === "r") { const button = document.querySelector("[data-key=r]:not(:disabled)"); if (button && !button.closest("[hidden]")) button.click(); }
    else if (event.key === "?") document.getElementById("keys").showModal();
    else if (event.key === "Enter" && at?.matches("tr") && event.target === document.body) at.querySelector("a").click();
    else return;
    event.preventDefault();
  });
}

// One stream, and none while the tab is hidden: a browser has six connections for a host.
function live() {
  const shown = document.querySelector("[data-live]");
  const state = document.querySelector("[data-live-state]");
  if (!shown || !state || !window.EventSource) return;
  let source = null, address = shown.dataset.live, busy = false;
  const say = (on) => { state.hidden = false; state.classList.toggle("on", on); state.lastElementChild.textContent = on ? "Live" : "Not live"; };
  const open = () => {
    if (source || document.hidden) return;
    source = new EventSource(address);
    source.onopen = () => say(true);
    source.onerror = () => say(false);
    source.addEventListener("rows", (event) => {
      for (const row of JSON.parse(event.data)) {
        const line = document.querySelector(`tr[data-id="${CSS.escape(row.id)}"]`);
        if (!line) continue;
        const kept = line.querySelector("input[name=id]")?.checked;
        line.innerHTML = row.html;
        const box = line.querySelector("input[name=id]");
        if (box && kept) box.checked = true;
        line.classList.remove("fresh"); void line.offsetWidth; line.classList.add("fresh");
      }
    });
    source.addEventListener("new", (event) => {
      const { count, more } = JSON.parse(event.data), news = document.getElementById("news");
      news.hidden = count === 0;
      news.textContent = `${count}${more ? " or more" : ""} newer ${count === 1 ? "run" : "runs"}: show`;
    });
    source.addEventListener("changed", async () => {
      if (busy || document.querySelector("details.menu[open]")) return;
      busy = true;
      try {
        const answer = await fetch(location.href, { headers: { accept: "text/html" } });
        if (!answer.ok) return;
        const next = new DOMParser().parseFromString(await answer.text(), "text/html");
        for (const part of all("[data-part]")) {
          const other = next.querySelector(`[data-part="${part.dataset.part}"]`);
          if (other) part.replaceWith(other);
        }
        for (const hidden of all("[data-copy]")) hidden.hidden = false;
        address = document.querySelector("[data-live]")?.dataset.live ?? address;
      } catch { say(false); } finally { busy = false; }
    });
  };
  const close = () => { source?.close(); source = null; };
  document.addEventListener("visibilitychange", () => (document.hidden ? close() : open()));
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
}
