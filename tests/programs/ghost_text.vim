" Asks for a completion as llama.vim does, shows it as ghost text and accepts it with Tab.
" g:url is the address of the server. Ctrl-G asks. The statusline is "asked", "shown", "empty",
" "dropped" or "accepted".

set nocompatible encoding=utf-8 noswapfile nomore shortmess+=I laststatus=2 statusline=%{g:state}
let g:state = 'ready'
let s:hint = {}
highlight Ghost ctermfg=8
call prop_type_add('ghost', {'highlight': 'Ghost'})

function! s:on_response(job, raw)
    " llama.vim's own test, before it parses: no space after the colon
    if a:raw !~# '^\s*{' || a:raw !~# '\v"content"\s*:"'
        let g:state = 'dropped'
        redrawstatus
        return
    endif
    let l:lines = split(json_decode(a:raw)['content'], "\n", 1)
    while len(l:lines) > 0 && l:lines[-1] == ''
        call remove(l:lines, -1)
    endwhile
    if len(l:lines) == 0
        let g:state = 'empty'
        redrawstatus
        return
    endif
    let s:hint = {'y': line('.'), 'x': col('.') - 1, 'lines': l:lines}
    call prop_add(s:hint.y, s:hint.x + 1, {'type': 'ghost', 'text': l:lines[0]})
    for l:line in l:lines[1:]
        call prop_add(s:hint.y, 0, {'type': 'ghost', 'text': l:line, 'text_align': 'below'})
    endfor
    let g:state = 'shown'
    redraw!
endfunction

function! Ask()
    let l:y = line('.')
    let l:x = col('.') - 1
    let l:line = getline(l:y)
    let l:request = {
        \ 'id_slot': 0,
        \ 'input_prefix': join(getline(1, l:y - 1), "\n") . "\n",
        \ 'input_suffix': strpart(l:line, l:x) . "\n" . join(getline(l:y + 1, '$'), "\n") . "\n",
        \ 'input_extra': [],
        \ 'prompt': strpart(l:line, 0, l:x),
        \ 'n_predict': 24,
        \ 'stop': [],
        \ 'n_indent': indent(l:y),
        \ 'top_k': 40,
        \ 'top_p': 0.90,
        \ 'samplers': ['top_k', 'top_p', 'infill'],
        \ 'stream': v:false,
        \ 'cache_prompt': v:true,
        \ 't_max_prompt_ms': 60000,
        \ 't_max_predict_ms': 60000,
        \ 'response_fields': ['content', 'timings/prompt_n', 'truncated'],
        \ 'model': '',
        \ }
    let l:command = ['curl', '--silent', '--no-buffer', '--request', 'POST', '--url', g:url . '/infill',
        \ '--header', 'Content-Type: application/json', '--data', '@-']
    let g:state = 'asked'
    redrawstatus
    let l:job = job_start(l:command, {'out_cb': function('s:on_response')})
    call ch_sendraw(job_getchannel(l:job), json_encode(l:request))
    call ch_close_in(job_getchannel(l:job))
    return ''
endfunction

function! Accept()
    if empty(s:hint)
        return ''
    endif
    call prop_remove({'type': 'ghost', 'all': v:true})
    let l:line = getline(s:hint.y)
    let l:rest = strpart(l:line, s:hint.x)
    let l:new = copy(s:hint.lines)
    let l:new[0] = strpart(l:line, 0, s:hint.x) . l:new[0]
    let l:new[-1] .= l:rest
    call setline(s:hint.y, l:new[0])
    call append(s:hint.y, l:new[1:])
    let s:hint = {}
    let g:state = 'accepted'
    redraw!
    return ''
endfunction

inoremap <C-G> <Cmd>call Ask()<CR>
inoremap <Tab> <Cmd>call Accept()<CR>
