"use strict";
(function () {
  const root = document.documentElement;
  const all = (selector, within) => Array.from((within || document).querySelectorAll(selector));
  const byId = (id) => document.getElementById(id);

  // The colours: those of the system, or the reader's choice, which is kept where the browser lets a file keep anything.
  const themes = ["auto", "light", "dark"];
  const themeButton = byId("theme");
  let theme = "auto";
  try { theme = localStorage.getItem("thinet-theme") || "auto"; } catch { /* not kept */ }
  function paint() {
    if (!themes.includes(theme)) theme = "auto";
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    themeButton.textContent = "Theme: " + theme;
  }
  themeButton.hidden = false;
  themeButton.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    try { localStorage.setItem("thinet-theme", theme); } catch { /* not kept */ }
    paint();
  });
  paint();

  // Details of what the pointer is on; a tap shows them, too.
  const tip = byId("tip");
  function showTip(event) {
    const holder = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    tip.hidden = !holder;
    if (!holder) return;
    tip.textContent = holder.dataset.tip;
    const edge = 8, box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 12, root.clientWidth - box.width - edge);
    const above = event.clientY - box.height - 12;
    tip.style.left = Math.max(edge, left) + "px";
    tip.style.top = (above > edge ? above : event.clientY + 18) + "px";
  }
  document.addEventListener("pointermove", showTip);
  document.addEventListener("pointerdown", showTip);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
  document.documentElement.addEventListener("pointerleave", () => { tip.hidden = true; });

  // The table of groups: filtered, sorted, and short until asked for all.
  const body = document.querySelector("table.groups tbody");
  if (body) {
    const rows = all("tr", body), few = rows.length > 45 ? 30 : rows.length, filter = byId("filter"), sort = byId("sort"), more = byId("all");
    const heads = all("th[data-sort]");
    let key = "order", sign = 1, whole = false;
    document.querySelector(".controls").hidden = false;
    const names = new Map(rows.map((row) => [row, row.querySelector("summary .name").textContent.toLowerCase()]));
    function value(row) {
      const text = row.dataset[key];
      if (key === "name") return names.get(row);
      return text === "" ? null : Number(text);
    }
    function compare(a, b) {
      const one = value(a), other = value(b);
      if (one === null || other === null) return (one === null) - (other === null);
      if (one !== other) return one < other ? -sign : sign;
      return a.dataset.order - b.dataset.order;
    }
    function arrange() {
      const wanted = filter.value.trim().toLowerCase();
      rows.sort(compare).forEach((row) => body.appendChild(row));
      const matching = rows.filter((row) => names.get(row).includes(wanted));
      const shown = new Set(whole || wanted ? matching : matching.slice(0, few));
      const found = new Set(matching);
      rows.forEach((row) => {
        row.classList.toggle("filtered", !found.has(row));
        row.classList.toggle("later", found.has(row) && !shown.has(row));
      });
      byId("count").textContent = wanted ? matching.length + " of " + rows.length : rows.length + (rows.length === 1 ? " group" : " groups");
      byId("none").hidden = matching.length > 0;
      more.hidden = Boolean(wanted) || rows.length === few;
      more.textContent = whole ? "Show the first " + few : "Show all " + rows.length;
      heads.forEach((head) => {
        if (head.dataset.sort === key) head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        else head.removeAttribute("aria-sort");
      });
    }
    heads.forEach((head) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = key !== head.dataset.sort;
        key = head.dataset.sort;
        sign = first ? (key === "name" || key === "kept" ? 1 : -1) : -sign;
        const option = key + ":" + sign;
        sort.value = all("option", sort).some((entry) => entry.value === option) ? option : "";
        arrange();
      });
    });
    sort.addEventListener("change", () => {
      const [name, direction] = sort.value.split(":");
      key = name;
      sign = Number(direction);
      arrange();
    });
    filter.addEventListener("input", arrange);
    more.addEventListener("click", () => { whole = !whole; arrange(); });
    arrange();
  }

  for (const copy of navigator.clipboard ? all(".copy") : []) {
    copy.hidden = false;
    copy.addEventListener("click", () => {
      navigator.clipboard.writeText(byId(copy.dataset.of).textContent).then(
        () => { copy.textContent = "Copied"; },
        () => { copy.textContent = "Not allowed"; },
      );
    });
  }

  // On paper no reason is folded away.
  let opened = [];
  window.addEventListener("beforeprint", () => {
    opened = all("#kept details:not([open]), #outputs details:not([open])");
    opened.forEach((part) => { part.open = true; });
  });
  window.addEventListener("afterprint", () => { opened.forEach((part) => { part.open = false; }); });
})();
