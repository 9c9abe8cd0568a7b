'use strict';
(function () {
  var data = JSON.parse(document.getElementById('data').textContent);
  var ink = '#1b2330', muted = '#5f6b7c', line = '#e3e7ee', bad = '#b42318', good = '#0f766e';
  var colors = { en: '#2563eb', fr: '#d97706', de: '#be123c' };
  var names = { en: 'English', fr: 'French', de: 'German' };
  var palette = { acknowledged: '#0f766e', dropped: '#d97706', aborted: '#a855f7', lost: '#b42318',
    dead_lettered: '#7c2d12', in_flight: '#94a3b8', stored: '#14918a', pending: '#cbd5e1' };
  var font = 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
  var charts = [];
  var byId = function (id) { return document.getElementById(id); };
  var narrow = function () { return window.innerWidth < 760; };
  var count = function (n) { return Number(n).toLocaleString('en-US'); };
  var fixed = function (x, digits) { return Number(x).toFixed(digits); };

  function chart(id) {
    var c = echarts.init(byId(id), null, { renderer: 'canvas' });
    charts.push(c);
    return c;
  }

  function base(extra) {
    return Object.assign({ animation: false, textStyle: { fontFamily: font, color: ink },
      aria: { enabled: true }, grid: { left: 8, right: 16, top: 34, bottom: 26, containLabel: true } }, extra);
  }

  function axis(kind, name, extra) {
    return Object.assign({ type: kind, name: name, nameLocation: 'middle', nameGap: 28, nameTextStyle: { color: muted },
      axisLine: { lineStyle: { color: '#c3cad5' } }, axisTick: { show: false }, axisLabel: { color: muted },
      splitLine: { lineStyle: { color: line } } }, extra);
  }

  // Text of requests and tokens is data: tooltips get it escaped, the page gets it as text nodes.
  function escape(text) {
    return String(text).replace(/[&<>"']/g, function (c) { return '&#' + c.charCodeAt(0) + ';'; });
  }

  function visible(token) { return token.replace(/\n/g, '\u21b5').replace(/ /g, '\u00b7'); }

  function fillSelect(id, options, onChange) {
    var select = byId(id);
    options.forEach(function (o, i) {
      var option = document.createElement('option');
      option.value = i;
      option.textContent = o;
      select.appendChild(option);
    });
    select.addEventListener('change', function () { onChange(Number(select.value)); });
  }

  function requestName(id) {
    var found = data.requests.filter(function (r) { return r.id === id; })[0];
    return found ? id + ' (' + names[found.language] + (found.stopped ? ', stopped)' : ')') : id;
  }

  function ledger() {
    var l = data.ledger, classes = ['acknowledged', 'dropped', 'aborted', 'lost', 'dead_lettered', 'in_flight'];
    var series = [];
    var bar = function (name, row, value, label, color) {
      series.push({ name: name, type: 'bar', stack: 'row ' + row, barWidth: 28, barGap: '-100%', data: [[value, row]],
        itemStyle: { color: color || palette[name], borderColor: '#fff', borderWidth: 1 },
        label: { show: value > l.captured * (narrow() ? 0.3 : 0.1), position: 'inside', color: '#fff', fontWeight: 600,
          formatter: label + ' ' + count(value) } });
    };
    var shades = ['#1d7f86', '#2b6f8f', '#5b6fa8', '#7d6aa5', '#9a6391', '#a86a6f', '#a77c4f', '#8a8a4a', '#5f9163'];
    classes.forEach(function (c) { if (l[c] > 0) bar(c, 2, l[c], c.replace('_', ' ')); });
    bar('stored', 1, data.stored, 'stored');
    if (data.pending > 0) bar('pending', 1, data.pending, 'pending');
    (data.stored_by || []).forEach(function (part, i) { bar(part.name, 0, part.rows, part.name, shades[i % shades.length]); });
    chart('ledger').setOption(base({ grid: { left: 8, right: 16, top: 4, bottom: 4, containLabel: true },
      tooltip: { trigger: 'item', formatter: function (p) {
        return escape(p.seriesName.replace('_', ' ')) + ': <b>' + count(p.value[0]) + '</b> rows'; } },
      xAxis: { type: 'value', max: l.captured || 1, axisLabel: { color: muted, hideOverlap: true, formatter: count },
        splitLine: { show: false }, axisLine: { show: false } },
      yAxis: { type: 'category', data: ['by hook', 'consumer', 'captured'], axisTick: { show: false },
        axisLine: { show: false }, axisLabel: { color: ink } }, series: series }));
  }

  function scores() {
    var s = data.scores;
    if (!s || !s.series.length) { byId('scores-card').hidden = true; return; }
    var series = s.series.map(function (x) {
      return { name: names[x.language], type: 'line', showSymbol: false, data: x.points, color: colors[x.language],
        lineStyle: { width: x.crossing === null ? 1.1 : 2, opacity: x.crossing === null ? 0.5 : 0.95 },
        emphasis: { focus: 'series', lineStyle: { width: 3 } }, triggerLineEvent: true,
        tooltip: { formatter: function (p) {
          return escape(requestName(x.request)) + '<br>token ' + (p.value ? p.value[0] + ': score <b>' +
            fixed(p.value[1], 2) + '</b>' : ''); } },
        markPoint: x.crossing === null ? undefined : { symbol: 'circle', symbolSize: 9, label: { show: false },
          itemStyle: { color: '#fff', borderColor: bad, borderWidth: 2.5 },
          data: x.points.filter(function (p) { return p[0] === x.crossing; }).map(function (p) { return { coord: p }; }) },
        z: x.crossing === null ? 2 : 3 };
    });
    series.push({ name: 'threshold', type: 'line', data: [], silent: true, markLine: { symbol: 'none', silent: true,
      lineStyle: { color: bad, type: 'dashed', width: 1.5 }, data: [{ yAxis: s.threshold }],
      label: { position: 'insideStartTop', color: bad, formatter: 'threshold ' + fixed(s.threshold, 2) } } });
    series.push({ name: 'crossed the threshold', type: 'scatter', data: [], symbol: 'circle',
      itemStyle: { color: '#fff', borderColor: bad, borderWidth: 2.5 } });
    var used = Object.keys(names).filter(function (k) {
      return s.series.some(function (x) { return x.language === k; }); });
    chart('scores').setOption(base({ tooltip: { trigger: 'item' },
      legend: { top: 0, left: 4, itemWidth: 18, textStyle: { color: ink }, data: used.map(function (k) {
        return { name: names[k], icon: 'roundRect', itemStyle: { color: colors[k] } }; }).concat('crossed the threshold') },
      grid: { left: 8, right: 18, top: 42, bottom: 30, containLabel: true },
      xAxis: axis('value', 'position of the token in its request', { min: 0, max: 'dataMax', splitLine: { show: false } }),
      yAxis: axis('value', '', { scale: true, min: Math.min(s.low, s.threshold), max: Math.max(s.high, s.threshold) }),
      series: series }));
  }

  function reading() {
    var list = data.reading || [];
    if (!list.length) { byId('reading-card').hidden = true; return; }
    var threshold = data.scores.threshold, low = data.scores.low, high = data.scores.high;
    var tint = function (score) {
      if (score === null) return '';
      if (score >= threshold) {
        var over = Math.min(1, (score - threshold) / Math.max(1e-9, high - threshold));
        return 'rgba(190, 18, 60, ' + fixed(0.16 + 0.4 * over, 3) + ')';
      }
      var under = Math.min(1, (threshold - score) / Math.max(1e-9, threshold - low));
      return 'rgba(15, 118, 110, ' + fixed(0.05 + 0.28 * under, 3) + ')';
    };
    var draw = function (i) {
      var box = byId('reading'), r = list[i];
      box.textContent = '';
      r.tokens.forEach(function (tok, k) {
        var position = r.first + k, span = document.createElement('span');
        span.textContent = tok.text;
        if (tok.score !== null) span.style.background = tint(tok.score);
        span.title = 'token ' + position + (tok.score === null ? '' : ', score ' + fixed(tok.score, 2));
        if (position < r.prompt_tokens) span.className = 'prompt';
        if (r.crossing !== null && position === r.crossing) span.className = 'crossed';
        if (r.crossing !== null && position > r.crossing) span.className = 'leaked';
        box.appendChild(span);
      });
    };
    fillSelect('reading-request', list.map(function (r) { return requestName(r.request); }), draw);
    draw(0);
  }

  function heat() {
    var list = data.heat || [], c = chart('heat'), at = 0, hook = 0;
    if (!list.length) { byId('heat').closest('section').hidden = true; return; }
    var hooks = Object.keys(list[0].hooks);
    var draw = function () {
      var h = list[at], rows = h.hooks[hooks[hook]] || [], cells = [], values = [];
      rows.forEach(function (row, layer) {
        row.forEach(function (v, i) {
          if (v !== null) { cells.push([i, layer, v]); values.push(v); }
        });
      });
      values.sort(function (a, b) { return a - b; });
      var low = values[0] || 0, high = values[Math.floor((values.length - 1) * 0.985)] || 1;
      c.setOption(base({ grid: { left: 8, right: 12, top: 8, bottom: 62, containLabel: true },
        tooltip: { formatter: function (p) {
          return 'layer ' + p.value[1] + ', token ' + (h.first + p.value[0]) + ' <b>' +
            escape(visible(h.tokens[p.value[0]])) + '</b><br>norm <b>' + fixed(p.value[2], 2) + '</b>'; } },
        xAxis: { type: 'category', data: h.tokens.map(visible), axisTick: { show: false }, axisLine: { show: false },
          axisLabel: { color: muted, rotate: 60, fontSize: 10.5, hideOverlap: true, width: 56, overflow: 'truncate' } },
        yAxis: { type: 'category', data: rows.map(function (_, i) { return 'layer ' + i; }), axisTick: { show: false },
          axisLine: { show: false }, axisLabel: { color: ink } },
        visualMap: { min: low, max: high, calculable: false, orient: 'horizontal', left: 'center', bottom: 0, itemWidth: 12,
          itemHeight: 150, precision: 1, text: [fixed(high, 1), fixed(low, 1)], textStyle: { color: muted },
          inRange: { color: ['#f3f7fb', '#bfe3df', '#5bb8b0', '#1d7f86', '#174a68', '#161d3f'] } },
        series: [{ type: 'heatmap', data: cells, itemStyle: { borderColor: '#fff', borderWidth: narrow() ? 0 : 0.6 },
          emphasis: { itemStyle: { borderColor: ink, borderWidth: 1.5 } } }] }), true);
    };
    fillSelect('heat-request', list.map(function (h) { return requestName(h.request); }), function (i) { at = i; draw(); });
    fillSelect('heat-hook', hooks, function (i) { hook = i; draw(); });
    draw();
  }

  function throughput() {
    var t = data.throughput;
    chart('throughput').setOption(base({ tooltip: { trigger: 'axis',
        valueFormatter: function (v) { return count(Math.round(v)); } },
      legend: { top: 0, left: 4, textStyle: { color: ink }, data: ['tokens/s', 'rows/s'] },
      grid: { left: 8, right: 8, top: 42, bottom: 30, containLabel: true },
      xAxis: axis('value', 'seconds', { min: 0, max: 'dataMax', splitLine: { show: false } }),
      yAxis: [axis('value', '', { axisLabel: { color: '#2563eb', formatter: count } }),
        axis('value', '', { splitLine: { show: false }, axisLabel: { color: good, formatter: function (v) {
          return v >= 1000 ? fixed(v / 1000, 0) + 'k' : v; } } })],
      series: [
        { name: 'tokens/s', type: 'line', step: 'end', showSymbol: false, color: '#2563eb', areaStyle: { opacity: 0.08 },
          data: t.map(function (p) { return [p.second, p.tokens_per_s]; }) },
        { name: 'rows/s', type: 'line', step: 'end', showSymbol: false, color: good, yAxisIndex: 1,
          data: t.map(function (p) { return [p.second, p.rows_per_s]; }) }] }));
  }

  function latency() {
    var l = data.latency;
    if (!l || !l.bins.length) { byId('latency').closest('section').hidden = true; return; }
    var labels = l.bins.map(function (b) { return b.to >= 10 ? fixed(b.to, 0) : fixed(b.to, 1); });
    var place = function (ms) {
      for (var i = 0; i < l.bins.length; i++) if (ms <= l.bins[i].to) return i;
      return l.bins.length - 1;
    };
    var mark = function (name, ms, where) {
      return { xAxis: place(ms), label: { formatter: name + ' ' + fixed(ms, 1) + ' ms', position: where, color: ink } };
    };
    chart('latency').setOption(base({ tooltip: { trigger: 'item', formatter: function (p) {
        var b = l.bins[p.dataIndex];
        return fixed(b.from, 2) + ' to ' + fixed(b.to, 2) + ' ms: <b>' + count(b.count) + '</b> verdicts'; } },
      grid: { left: 8, right: 16, top: 42, bottom: 30, containLabel: true },
      xAxis: axis('category', 'milliseconds (each bar up to)', { data: labels }),
      yAxis: axis('value', '', { axisLabel: { color: muted, formatter: count } }),
      series: [{ type: 'bar', data: l.bins.map(function (b) { return b.count; }), barCategoryGap: '12%',
        itemStyle: { color: '#5bb8b0', borderRadius: [3, 3, 0, 0] },
        markLine: { symbol: 'none', silent: true, lineStyle: { color: ink, type: 'dashed' },
          data: [mark('p50', l.p50, 'end'), mark('p99', l.p99, place(l.p99) - place(l.p50) > 2 ? 'end' : 'insideEndTop')] } }]
    }));
  }

  function requests() {
    var body = byId('requests');
    data.requests.forEach(function (r) {
      var row = document.createElement('tr');
      var cell = function (text, cls) {
        var td = document.createElement('td');
        td.textContent = text;
        if (cls) td.className = cls;
        row.appendChild(td);
        return td;
      };
      cell(r.id);
      var language = cell(names[r.language] || r.language), dot = document.createElement('span');
      dot.className = 'dot';
      dot.style.background = colors[r.language] || muted;
      language.insertBefore(dot, language.firstChild);
      cell(count(r.prompt_tokens), 'n');
      cell(count(r.generated_tokens), 'n');
      cell(r.stopped ? 'stopped by the detector' : r.reason, r.stopped ? 'stopped' : '');
      cell(r.text);
      body.appendChild(row);
    });
  }

  [ledger, scores, reading, heat, throughput, latency, requests].forEach(function (draw) { draw(); });
  window.addEventListener('resize', function () { charts.forEach(function (c) { c.resize(); }); });
})();
