// Shows the progress of a view's refresh while it runs, and its outcome when it ends.
"use strict";
(() => {
  const page = document.getElementById("matviews-page");
  if (!page) return;

  const SOON = 1500; // milliseconds between two polls
  const LATEST = 30000; // between two attempts while the server does not answer
  const TIMEOUT = 10000; // for one answer
  const RENEWAL = 15000; // between two renewals of what only the server renders
  const PARTS = [
    "matviews-status", "matviews-phases", "matviews-verification", "matviews-history",
    "matviews-spent", "matviews-parked",
  ];
  const find = (id) => document.getElementById(id);
  const text = (name, value) => page.dataset[name].replace("{}", value);
  const works = () => find("matviews-status").dataset.works === "yes";

  let timer = null;
  let pause = SOON;
  let polling = false;
  let told = "";
  let renewed = Date.now();

  // Once per phase and quarter of the work, so that a screen reader does not talk all the time.
  const say = (words) => {
    if (words === told) return;
    told = words;
    find("matviews-said").textContent = words;
  };

  const trouble = (words) => {
    find("matviews-trouble").hidden = !words;
    find("matviews-trouble").textContent = words;
    if (words) say(words);
  };

  const show = (live) => {
    for (const each of page.querySelectorAll("[data-phase]")) {
      each.textContent = live.phases[each.dataset.phase] || "";
    }
    for (const each of page.querySelectorAll("[data-badge]")) {
      const state = live.badges[each.dataset.badge];
      const badge = each.querySelector(".matviews-badge");
      if (state && badge) [badge.className, badge.textContent] = state;
    }
    const verifying = find("matviews-verifying");
    if (verifying) verifying.textContent = live.verifying;
    const bar = find("matviews-done");
    if (!bar) return;
    const percent = live.done === null ? null : Math.round(live.done * 100);
    if (percent === null) bar.removeAttribute("value");
    else bar.value = percent;
    find("matviews-percent").textContent = percent === null ? "" : `${percent} %`;
    find("matviews-words").textContent = live.words;
    const phase = live.words.split(":")[0];
    say(percent === null ? phase : `${phase}, ${text("textDone", Math.floor(percent / 25) * 25)}`);
  };

  // Replaces parts of the page with what the server renders now; a form being edited is not one.
  const renew = async (parts) => {
    const answer = await ask(location.href);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    renewed = Date.now();
    for (const id of parts) {
      const [old, now] = [find(id), fresh.getElementById(id)];
      if (!old || !now) continue;
      const focused = old.contains(document.activeElement);
      old.replaceChildren(...now.childNodes);
      Object.assign(old.dataset, now.dataset);
      if (focused) find(`${id}-heading`).focus();
    }
    if (!works()) say(find("matviews-status").querySelector(".matviews-line").innerText);
  };

  const ask = async (url) => {
    const answer = await fetch(url, { signal: AbortSignal.timeout(TIMEOUT), cache: "no-store" });
    if (answer.redirected || answer.status === 403) throw new Refused();
    if (!answer.ok) throw new Error(answer.statusText);
    return answer;
  };

  class Refused extends Error {}

  const poll = async () => {
    timer = null;
    if (document.hidden || polling) return;
    polling = true;
    try {
      const live = await (await ask(page.dataset.progress)).json();
      show(live);
      const shown = find("matviews-status").dataset.refresh;
      const verifies = find("matviews-verification")?.dataset.verifying === "yes";
      if (!live.works || String(live.refresh ?? "") !== shown) await renew(PARTS);
      else if (Boolean(live.verifying) !== verifies) await renew(["matviews-verification"]);
      // This part has neither buttons nor tracebacks, which somebody may be using.
      else if (find("matviews-standing") && Date.now() - renewed > RENEWAL) {
        await renew(["matviews-standing"]);
      }
      pause = SOON;
      trouble("");
    } catch (error) {
      if (error instanceof Refused) {
        trouble(text("textRefused"));
        return;
      }
      pause = Math.min(pause * 2, LATEST);
      trouble(text("textSilent", Math.round(pause / 1000)));
    } finally {
      polling = false;
    }
    if (works()) timer = setTimeout(poll, pause);
  };

  document.addEventListener("visibilitychange", () => {
    if (!document.hidden && !timer && works()) poll();
  });
  if (works()) poll();
})();
